"""What every family that can learn language shares: predict each token from those before it, whatever the network.

The loss of a text is the mean over its scored tokens (neither given nor padding) of -log p(token | those before), that
of a batch the mean over its texts.  Held-out texts are scored by bits a token over all of their scored tokens, which is
what language models are compared by; texts may then overlap, each scoring what is new in it.

Shape suffixes: B batch, T tokens of a text, V different tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._base import Objective
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import RESERVED_TOKENS, DataSpec
from neurofleet.steps import Batch, Context


class LanguageFamily(SupervisedFamily):
    """Abstract: a supervised family that also learns the task `language`; there a subclass gives `token_logits`, and
    its `forward` says what comes after a text.

    Loss: the mean negative log-likelihood of scored tokens, see this module; else see `SupervisedFamily`.
    """

    tasks: ClassVar[frozenset[str]] = SupervisedFamily.tasks | {"language"}

    @classmethod
    def accept(cls, spec: DataSpec) -> None:
        super().accept(spec)
        if spec.task == "language" and spec.kind != "text":
            raise MismatchError(f"{cls.__name__} learns language from text, got {spec.name}, which is {spec.kind}")

    @abstractmethod
    def token_logits(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """Tokens [B, T] -> logits [B, T, V] of what follows each; none depends on a later token."""

    def check_prompts(self, tokens: Tensor, temperature: float) -> None:
        """Raise ConfigError unless texts [B, T] can be continued."""
        if self.spec.task != "language":
            raise ConfigError(f"generate needs a network for the task language, got {self.spec.task}")
        if temperature < 0 or tokens.ndim != 2 or tokens.shape[1] < 1 or bool((tokens[:, 0] == 0).any()):
            raise ConfigError(
                "generate needs a temperature of at least 0 and texts [B, T] of at least one token, "
                f"got temperature={temperature} and tokens of shape {tuple(tokens.shape)}"
            )

    def objective(self, batch: Batch, context: Context) -> Objective:
        if self.spec.task != "language":
            return super().objective(batch, context)
        tokens_BT, given_B = batch
        logits_BTV = self.token_logits(tokens_BT[:, :-1], context)
        smoothing = self.label_smoothing if context.training else 0.0
        nats_B, num_scored_B = scored_nats(logits_BTV, tokens_BT, given_B, smoothing)
        loss = (nats_B / num_scored_B.clamp(min=1)).mean()
        if not context.measure:
            return Objective(loss)
        if smoothing:
            nats_B, _ = scored_nats(logits_BTV.detach(), tokens_BT, given_B, 0.0)
        return Objective(loss, {self.bits_name: nats_B.detach() / num_scored_B.clamp(min=1) / math.log(2)})

    @property
    def bits_name(self) -> str:
        return "bits_per_character" if self.spec.tokenizer == "characters" else "bits_per_word"

    @property
    def score_names(self) -> list[str]:
        return ["loss", self.bits_name] if self.spec.task == "language" else super().score_names

    def _evaluate(self, batch: Batch, stage: str) -> None:
        if self.spec.task != "language":
            super()._evaluate(batch, stage)
            return
        tokens_BT, given_B = batch
        nats_B, num_scored_B = scored_nats(self.token_logits(tokens_BT[:, :-1]), tokens_BT, given_B, 0.0)
        loss = (nats_B / num_scored_B.clamp(min=1)).mean()
        self._tally(stage, {"loss": loss, "nats": nats_B, "tokens": num_scored_B}, len(nats_B))

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        if self.spec.task != "language":
            return super()._scores_of(stage)
        means = self._means(stage)
        return {"loss": means["loss"], self.bits_name: means["nats"] / means["tokens"] / math.log(2)}

    @property
    def quick_scores(self) -> frozenset[str]:
        return frozenset({"loss"} if self.spec.task == "language" else {"loss", "accuracy"} & set(self.score_names))


def scored_nats(logits_BTV: Tensor, tokens_BT: Tensor, given_B: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of each text's scored tokens, and how many they are: [B] each.

    logits_BTV: of all tokens but the first
    """
    targets_BT = tokens_BT[:, 1:]
    places_T = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)
    scored_BT = (places_T >= given_B.unsqueeze(1)) & (targets_BT != 0)
    flat = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none", label_smoothing=smoothing)
    return (flat.view_as(targets_BT) * scored_BT).sum(dim=1), scored_BT.sum(dim=1)


def sample(logits_BV: Tensor, temperature: float, key: counter.Key, rows_B: Tensor) -> Tensor:
    """One token for each row, int64 [B]: the most probable at temperature 0, else drawn from the softmax of logits /
    temperature (by Gumbel's maximum).  Padding and the unknown token are never said."""
    logits_BV = logits_BV.clone()
    logits_BV[:, :RESERVED_TOKENS] = -torch.inf
    if temperature > 0:
        uniform = counter.uniform(key, rows_B, tuple(logits_BV.shape[1:]), torch.float64)
        gumbel_BV = -torch.log(-torch.log(uniform + 2.0**-25))  # uniform may be 0, never 1
        logits_BV = logits_BV.double() / temperature + gumbel_BV
    return logits_BV.argmax(dim=1)
