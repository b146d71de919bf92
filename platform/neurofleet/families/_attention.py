"""Attention, and the pre-norm block around it (Vaswani et al. 2017; Xiong et al. 2020, "On layer normalization").

A block begins as the identity: what it adds to the stream is multiplied by matrices that are zero at first, so a deep
network starts as a shallow one.  Norms have no bias, and neither have the matrices: both are faster without, and no
worse.  Shape suffixes: B batch, T tokens, S tokens that are looked at, H heads, K units of a head, D width, F units of
the feed-forward layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.families._layers import Dropout
from neurofleet.steps import Context

SITES_PER_BLOCK = 2


def attention_weights(query_BHTK: Tensor, key_BHSK: Tensor, *, causal: bool, valid_BS: Tensor | None) -> Tensor:
    """softmax(q k' / sqrt(K)) over the tokens that are `valid` (all, if None) and, if `causal`, not later."""
    scores_BHTS = query_BHTK @ key_BHSK.transpose(-1, -2) / math.sqrt(query_BHTK.shape[-1])
    if valid_BS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~valid_BS[:, None, None, :], -math.inf)
    if causal:
        length = scores_BHTS.shape[-1]
        later_TS = torch.ones(length, length, dtype=torch.bool, device=scores_BHTS.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(later_TS, -math.inf)
    return scores_BHTS.softmax(dim=-1)


def attend(
    query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, *, causal: bool, valid_BS: Tensor | None
) -> Tensor:
    """`attention_weights` times the values, [B, H, T, K].

    torch's own kernel takes a half to a third of the time of the formula at 256 tokens, and has no rule for `vmap`:
    there the formula runs.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(query_BHTK):
        return attention_weights(query_BHTK, key_BHSK, causal=causal, valid_BS=valid_BS) @ value_BHSK
    mask = None if valid_BS is None else valid_BS[:, None, None, :]
    if causal and mask is not None:  # the kernel takes one of the two
        length = query_BHTK.shape[2]
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return F.scaled_dot_product_attention(
        query_BHTK, key_BHSK, value_BHSK, attn_mask=mask, is_causal=causal and mask is None
    )


def rotate(tokens_BHTK: Tensor, turns_2TK: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): the product of two rotated tokens depends on how far apart they stand.

    turns_2TK: cosines and sines of each place's angles, see `rotary_turns`; more places than T do no harm
    """
    cosine_TK, sine_TK = turns_2TK[:, : tokens_BHTK.shape[2]]
    first, second = tokens_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cosine_TK - second * sine_TK, second * cosine_TK + first * sine_TK], dim=-1)


def rotary_turns(num_places: int, head_size: int) -> Tensor:
    """Cosines and sines [2, num_places, head_size / 2]; wavelengths from 2 pi to 10,000 times that."""
    frequencies_K = 10_000.0 ** -(torch.arange(head_size // 2, dtype=torch.float64) * 2 / head_size)
    angles_TK = torch.arange(num_places, dtype=torch.float64)[:, None] * frequencies_K
    return torch.stack([angles_TK.cos(), angles_TK.sin()]).to(torch.get_default_dtype())


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), with dropout on both additions.

    first_site: of two consecutive sites for dropout
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        feed_forward: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        first_site: int,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.activation = activation
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.norm_feed_forward = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, width, bias=False)
        for linear in (self.query_key_value, self.up):
            nn.init.normal_(linear.weight, std=width**-0.5)
        for linear in (self.mix, self.down):
            nn.init.zeros_(linear.weight)
        self.dropouts = nn.ModuleList(Dropout(dropout, first_site + index) for index in range(SITES_PER_BLOCK))

    def heads(self, stream_BTD: Tensor, turns_2TK: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, K]."""
        parts = self.query_key_value(self.norm_attention(stream_BTD)).unflatten(-1, (3, self.num_heads, -1))
        query_BHTK, key_BHTK, value_BHTK = (part.transpose(1, 2) for part in parts.unbind(dim=2))
        if turns_2TK is not None:
            query_BHTK, key_BHTK = rotate(query_BHTK, turns_2TK), rotate(key_BHTK, turns_2TK)
        return query_BHTK, key_BHTK, value_BHTK

    def forward(
        self,
        stream_BTD: Tensor,
        context: Context | None,
        *,
        turns_2TK: Tensor | None,
        causal: bool,
        valid_BT: Tensor | None,
    ) -> Tensor:
        attended_BHTK = attend(*self.heads(stream_BTD, turns_2TK), causal=causal, valid_BS=valid_BT)
        mixed_BTD = self.mix(attended_BHTK.transpose(1, 2).flatten(2))
        stream_BTD = stream_BTD + self.dropouts[0](mixed_BTD, context)
        inner_BTF = self.activation(self.up(self.norm_feed_forward(stream_BTD)))
        return stream_BTD + self.dropouts[1](self.down(inner_BTF), context)
