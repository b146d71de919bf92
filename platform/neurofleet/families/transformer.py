"""Transformer (Vaswani et al. 2017): an encoder of sequences, texts and image patches, and a causal decoder of texts.

Pre-norm blocks without biases (see `neurofleet.families._attention`).  Places are told by sines and cosines added to
the tokens, in two dimensions for patches (SimpleViT, Beyer et al. 2022); between a text's tokens only distance counts
(rotary positions, Su et al. 2021).  An encoder is read out from the mean of its tokens; steps and tokens after a
row's end are neither looked at nor counted.  Shape suffixes: B batch, T tokens, D width, V vocabulary, H heads, K units
of a head, S tokens that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._attention import SITES_PER_BLOCK, Block, attention_weights, rotary_turns
from neurofleet.families._language import LanguageFamily, sample
from neurofleet.families._layers import Dropout, RandomAffine, activation_by_name
from neurofleet.families._recurrence import last_of
from neurofleet.families._tokens import PatchTokens, StepTokens, TextTokens
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

SHOWN_ROWS = 6  # in the picture of attention


class Transformer(LanguageFamily):
    """Tokens, blocks of attention and feed-forward layers, a norm, and the readout.

    In: sequences [B, T, channels] (NaN after the end), texts [B, T] (0 after the end), images [B, channels, height,
    width].  Out: [B, spec.num_outputs] logits or values; of the task language, logits of the token after the text.
    Loss: by task, see `neurofleet.families._supervised` and `_language`.

    width:           units of a token
    num_layers:      blocks
    num_heads:       of attention; width has to be a multiple (twice a multiple for texts)
    feed_forward:    units of a block's feed-forward layer, as a multiple of width
    activation:      relu, sigmoid, tanh or gelu
    dropout:         rate on the tokens, on what each half of a block adds, and before the readout
    patch_size:      of images, in pixels a side; null for about an eighth of the shorter side, but at least 2
    stem:            of images, channels of the convolutions before the patches, each pooled to half; empty for none
    ngrams:          of texts, lengths of the n-grams that are embedded beside the tokens
    ngram_buckets:   of texts, rows in the table of each length
    label_smoothing: of classification and language, in training
    augmentation:    of images: degrees, scale, translation of random distortions in training; zeros for none
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"sequence", "text", "image"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        width: int,
        num_layers: int,
        num_heads: int,
        feed_forward: int,
        activation: str,
        dropout: float,
        patch_size: int | None,
        stem: list[int],
        ngrams: list[int],
        ngram_buckets: int,
        label_smoothing: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        self._check(spec, width, num_layers, num_heads, feed_forward, stem)
        self.causal = spec.task == "language"
        self.embed: PatchTokens | StepTokens | TextTokens
        if spec.kind == "image":
            self.embed = PatchTokens(spec=spec, width=width, patch_size=patch_size, stem=stem)
        elif spec.kind == "text":
            self.embed = TextTokens(spec=spec, width=width, ngrams=ngrams, buckets=ngram_buckets)
        else:
            self.embed = StepTokens(spec=spec, width=width)
        turns_2TK = rotary_turns(spec.shape[0], width // num_heads) if spec.kind == "text" else None
        self.register_buffer("turns_2TK", turns_2TK, persistent=False)
        self.drop_tokens, self.drop_pooled = Dropout(dropout, site=0), Dropout(dropout, site=1)
        self.distort = RandomAffine.from_config(augmentation, spec, site=2)
        self.blocks = nn.ModuleList(
            Block(
                width=width,
                num_heads=num_heads,
                feed_forward=feed_forward * width,
                activation=activation_by_name(activation),
                dropout=dropout,
                first_site=3 + SITES_PER_BLOCK * index,
            )
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.readout = nn.Linear(width, spec.num_outputs)
        # A language model starts near the uniform distribution; a classifier learns faster from louder first guesses.
        nn.init.normal_(self.readout.weight, std=0.02 if self.causal else width**-0.5)
        nn.init.zeros_(self.readout.bias)

    @staticmethod
    def _check(spec: DataSpec, width: int, num_layers: int, num_heads: int, feed_forward: int, stem: list[int]) -> None:
        if min(width, num_layers, num_heads, feed_forward, *stem) < 1:
            raise ConfigError(
                "Transformer needs positive width, num_layers, num_heads, feed_forward and stem, got "
                f"width={width}, num_layers={num_layers}, num_heads={num_heads}, feed_forward={feed_forward}, "
                f"stem={list(stem)}"
            )
        part = 2 * num_heads if spec.kind == "text" else num_heads  # rotary positions turn pairs of units
        if width % part:
            raise ConfigError(
                f"family.width needs a multiple of {part} for {num_heads} heads on {spec.kind} data, got {width}; "
                f"try {max(round(width / part), 1) * part}"
            )

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return self.distort(inputs, context)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The mean of a row's tokens; of the task language the last one, the only one that has seen all of them."""
        tokens_BTD, valid_BT = self.embed(inputs)
        if not self.causal:
            pooled_BD = _mean(self._encode(tokens_BTD, valid_BT, context), valid_BT)
        else:  # no later token is seen, so no padding either
            pooled_BD = last_of(self._encode(tokens_BTD, None, context), valid_BT.sum(dim=1))
        return self.drop_pooled(pooled_BD, context)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("readout",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.features(inputs, context))

    def _encode(self, tokens_BTD: Tensor, valid_BT: Tensor | None, context: Context | None) -> Tensor:
        stream_BTD = self.drop_tokens(tokens_BTD, context)
        for block in self.blocks:
            stream_BTD = block(stream_BTD, context, turns_2TK=self.turns_2TK, causal=self.causal, valid_BT=valid_BT)
        return self.norm(stream_BTD)

    # The task language.

    def token_logits(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.drop_pooled(self._encode(self.embed(tokens)[0], None, context), context))

    @torch.no_grad()
    def generate(self, tokens: Tensor, num_tokens: int, *, temperature: float, seed: int) -> Tensor:
        """Continue texts, token by token: int64 [B, T], 0 after the end of a shorter one -> [B, T + num_tokens], alike.

        temperature: of the softmax that is drawn from; 0 for the most probable token
        Of a text longer than the network's the last tokens count.
        Raises ConfigError if the network was not trained to continue texts, or if there is nothing to continue.
        """
        self.check_prompts(tokens, temperature)
        lengths_B, texts_BT = (tokens != 0).sum(dim=1), F.pad(tokens, (0, num_tokens))
        rows_B = torch.arange(len(tokens), dtype=torch.int32, device=tokens.device)
        places_S = torch.arange(min(self.spec.shape[0], texts_BT.shape[1]), device=tokens.device)
        for step in range(num_tokens):
            firsts_B = (lengths_B - len(places_S)).clamp(min=0)
            seen_BS = texts_BT.gather(1, firsts_B.unsqueeze(1) + places_S)
            drawn_B = sample(self(seen_BS), temperature, counter.fold(seed, step), rows_B)
            texts_BT.scatter_(1, lengths_B.unsqueeze(1), drawn_B.unsqueeze(1))
            lengths_B = lengths_B + 1
        return texts_BT

    # What there is to look at.

    def attention(self, inputs: Tensor) -> Tensor:
        """Who looks at whom in the last block: [B, H, T, T]; each row of the square sums to one."""
        stream_BTD, valid_BT = self.embed(inputs)
        valid_BT = None if self.causal else valid_BT
        *before, last = self.blocks
        for block in before:
            stream_BTD = block(stream_BTD, None, turns_2TK=self.turns_2TK, causal=self.causal, valid_BT=valid_BT)
        query_BHTK, key_BHTK, _ = last.heads(stream_BTD, self.turns_2TK)  # type: ignore[operator]
        return attention_weights(query_BHTK, key_BHTK, causal=self.causal, valid_BS=valid_BT)

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        inputs = batch[0][:SHOWN_ROWS]
        shown = {"inputs": inputs, "weights": self.attention(inputs)}
        if isinstance(self.embed, PatchTokens):
            mean, std = (
                inputs.new_tensor(values)[:, None, None] for values in (self.spec.input_mean, self.spec.input_std)
            )
            shown["inputs"] = inputs * std + mean
            shown["grid"] = torch.tensor(self.embed.grid)
        return super().exhibits(batch) | {"attention_maps": shown}


def _mean(tokens_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return tokens_BTD.mean(dim=1)
    counted_BT = valid_BT.to(tokens_BTD.dtype)
    return (counted_BT[:, None] @ tokens_BTD).squeeze(1) / counted_BT.sum(dim=1, keepdim=True)
