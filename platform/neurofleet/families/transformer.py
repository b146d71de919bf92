"""Transformer (Vaswani et al. 2017): an encoder of sequences, texts and image patches, and a causal decoder of texts.

Pre-norm blocks without biases (see `neurofleet.families._attention`).  Places are told by sines and cosines added to
the tokens, in two dimensions for patches (SimpleViT, Beyer et al. 2022); between a text's tokens only distance counts
(rotary positions, Su et al. 2021).  An encoder is read out from the mean of its tokens; steps and tokens after a
row's end are neither looked at nor counted.  Shape suffixes: B batch, T tokens, D width, V vocabulary, H heads, K units
of a head, S tokens that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._attention import SITES_PER_BLOCK, Block, attention_weights, rotary_turns
from neurofleet.families._base import Objective
from neurofleet.families._layers import Dropout, RandomAffine, activation_by_name
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.families._tokens import PatchTokens, StepTokens, TextTokens
from neurofleet.spec import RESERVED_TOKENS, DataSpec
from neurofleet.steps import Batch, Context

SHOWN_ROWS = 6  # in the picture of attention


class Transformer(SupervisedFamily):
    """Tokens, blocks of attention and feed-forward layers, a norm, and the readout.

    In: sequences [B, T, channels] (NaN after the end), texts [B, T] (0 after the end), images [B, channels, height,
    width].  Out: [B, spec.num_outputs] logits or values; of the task language, logits of the token after the text.
    Loss: by task, see `neurofleet.families._supervised`.  Of the task language: the cross-entropy of each token given
    those before it, mean over a row's scored tokens (from the number in the targets on), then over the rows.

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
    label_smoothing: of classification, in training
    augmentation:    of images: degrees, scale, translation of random distortions in training; zeros for none
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"sequence", "text", "image"})
    tasks: ClassVar[frozenset[str]] = SupervisedFamily.tasks | {"language"}

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
        self.distort = RandomAffine.from_config(augmentation, site=2)
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

    @classmethod
    def accept(cls, spec: DataSpec) -> None:
        super().accept(spec)
        if spec.task == "language" and spec.kind != "text":
            raise MismatchError(
                f"{cls.__name__} needs texts for the task language, got {spec.name}, of kind {spec.kind}"
            )

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
        return self.distort(inputs, context) if self.spec.kind == "image" else inputs

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """[B, spec.num_outputs]; a language model that is given a context says it after every token, [B, T, V]."""
        tokens_BTD, valid_BT = self.embed(inputs)
        if self.causal:
            outputs_BTD = self._encode(tokens_BTD, None, context)  # no later token is seen, so no padding either
            if context is None:
                last_B = valid_BT.sum(dim=1) - 1
                outputs_BTD = outputs_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
            return self.readout(self.drop_pooled(outputs_BTD, context))
        outputs_BTD = self._encode(tokens_BTD, valid_BT, context)
        return self.readout(self.drop_pooled(_mean(outputs_BTD, valid_BT), context))

    def _encode(self, tokens_BTD: Tensor, valid_BT: Tensor | None, context: Context | None) -> Tensor:
        stream_BTD = self.drop_tokens(tokens_BTD, context)
        for block in self.blocks:
            stream_BTD = block(stream_BTD, context, turns_2TK=self.turns_2TK, causal=self.causal, valid_BT=valid_BT)
        return self.norm(stream_BTD)

    # The task language.

    def objective(self, batch: Batch, context: Context) -> Objective:
        if not self.causal:
            return super().objective(batch, context)
        tokens_BT, given_B = batch
        logits_BTV = self(tokens_BT[:, :-1], context)
        smoothing = self.label_smoothing if context.training else 0.0
        losses_B = _next_token_losses(logits_BTV, tokens_BT, given_B, smoothing)
        if not context.measure:
            return Objective(losses_B.mean())
        plain_B = _next_token_losses(logits_BTV.detach(), tokens_BT, given_B, 0.0) if smoothing else losses_B.detach()
        return Objective(losses_B.mean(), {self._bits: plain_B / math.log(2)})

    @property
    def _bits(self) -> str:
        return "bits_per_character" if self.spec.tokenizer == "characters" else "bits_per_word"

    @property
    def score_names(self) -> list[str]:
        return ["loss", self._bits] if self.causal else super().score_names

    def _evaluate(self, batch: Batch, stage: str) -> None:
        if not self.causal:
            super()._evaluate(batch, stage)
            return
        objective = self.objective(batch, self._context(batch, 0, training=False))
        self._tally(stage, {"loss": objective.loss, **objective.metrics}, len(batch[0]))

    def _log_evaluation(self, stage: str) -> None:
        if self.causal:
            self._log_scores(stage, self._means(stage))
        else:
            super()._log_evaluation(stage)

    @torch.no_grad()
    def generate(self, tokens: Tensor, num_tokens: int, *, temperature: float, seed: int) -> Tensor:
        """Continue texts, token by token: int64 [B, T] without padding -> [B, T + num_tokens].

        temperature: of the softmax that is drawn from; 0 for the most probable token
        Of a text longer than the network's the last tokens count.
        Raises ConfigError if the network was not trained to continue texts, or if there is nothing to continue.
        """
        if not self.causal:
            raise ConfigError(f"generate needs a network for the task language, got {self.spec.task}")
        if temperature < 0 or tokens.ndim != 2 or tokens.shape[1] < 1 or bool((tokens == 0).any()):
            raise ConfigError(
                "generate needs a temperature of at least 0 and texts [B, T] of at least one token without padding, "
                f"got temperature={temperature} and tokens of shape {tuple(tokens.shape)}"
            )
        rows = torch.arange(len(tokens), dtype=torch.int32, device=tokens.device)
        for step in range(num_tokens):
            logits_BV = self(tokens[:, -self.spec.shape[0] :]).double()
            logits_BV[:, :RESERVED_TOKENS] = -math.inf  # padding and the unknown token are no text
            if temperature > 0:  # the largest of logits with Gumbel noise is a draw from their softmax
                noise = counter.uniform(counter.fold(seed, step), rows, (logits_BV.shape[1],), torch.float64)
                logits_BV = logits_BV / temperature - (-(noise + 2.0**-25).log()).log()
            tokens = torch.cat([tokens, logits_BV.argmax(dim=1, keepdim=True)], dim=1)
        return tokens

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


def _next_token_losses(logits_BTV: Tensor, tokens_BT: Tensor, given_B: Tensor, smoothing: float) -> Tensor:
    """The mean over each row's scored tokens: those after the given ones, up to the end of the text; 0 without any."""
    wanted_BT = tokens_BT[:, 1:]
    losses = F.cross_entropy(logits_BTV.flatten(0, 1), wanted_BT.flatten(), reduction="none", label_smoothing=smoothing)
    places_T = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)
    scored_BT = (places_T >= given_B[:, None]) & (wanted_BT != 0)
    return (losses.view_as(wanted_BT) * scored_BT).sum(dim=1) / scored_BT.sum(dim=1).clamp(min=1)
