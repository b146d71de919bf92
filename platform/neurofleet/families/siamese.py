"""Siamese network (Bromley et al. 1993): one encoder, trained so that distance says whether two inputs are of a kind.

A pair across the rows of a batch would tie the loss to how rows are shared among workers.  So all rows of a batch are
held against the same references: training rows that are drawn for the step, from each class in turn, by (seed, step)
alone.  The loss of a row depends on that row and the references; every worker embeds the same ones, and the gradients
through them add up like all others: parts make the whole exactly.  It is also the cheapest way to many pairs: B rows
and R references are B + R passes for B * R pairs.

The references come out of the training rows, which `start` is given and which are no part of the weights.

Shape suffixes: B rows, R references, E units of an embedding, N held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, nearest
from neurofleet.families import _pairs
from neurofleet.families._base import Family, Objective
from neurofleet.families._inner import StartsFromInputs, inner_network
from neurofleet.families._supervised import SupervisedFamily, embedding_spec
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

LOSSES = ("contrastive", "triplet", "ntxent")
DRAW_SITE, TURN_SITE, PARTNER_SITE, HALVES_SITE = range(2000, 2004)  # beyond those of any encoder
ENCODERS = ("cnn", "dbn", "mlp", "rnn", "spiking", "transformer")
HELD_OUT_REFERENCES = 64  # what each held-out row's loss is measured against
PAIRED_ROWS = 2048  # of held-out rows; all their pairs are scored
SHOWN_PAIRS, SHOWN_POINTS = 4000, 400  # of the pictures


class References:
    """The training rows by class, to draw from."""

    def __init__(self, inputs: Tensor, labels_N: Tensor) -> None:
        self.inputs = inputs
        self.order_N = labels_N.argsort(stable=True)
        self.classes, self.counts = labels_N.unique(return_counts=True)
        self.firsts = self.counts.cumsum(0) - self.counts
        self.num_labels = int(self.classes[-1]) + 1

    def draw(self, number: int, key: counter.Key) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of so many rows, spread evenly over the classes."""
        slots_R = torch.arange(number, dtype=torch.int32, device=self.inputs.device)
        draws_R2 = counter.uniform(key, slots_R, (2,), torch.float64)
        return self._members((slots_R + draws_R2[:, 0]) / number, draws_R2[:, 1])

    def partners(self, rows_B: Tensor, key: counter.Key) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of a row of any class for each row of a batch."""
        draws_B2 = counter.uniform(key, rows_B, (2,), torch.float64)
        return self._members(draws_B2[:, 0], draws_B2[:, 1])

    def _members(self, quantiles_of_classes_R: Tensor, quantiles_R: Tensor) -> tuple[Tensor, Tensor]:
        """The rows at quantiles, in [0, 1), of the classes and of a class's rows."""
        classes_R = (quantiles_of_classes_R * len(self.classes)).long()
        places_R = self.firsts[classes_R] + (quantiles_R * self.counts[classes_R]).long()
        return self.inputs[self.order_N[places_R]], self.classes[classes_R]


class Siamese(Family):
    """An encoder of any family, and distances between what it says.

    In: what the encoder takes.  Out: [B, size], of length one if `normalize`.
    Loss: of each row against the references of the step; of held-out rows against some of themselves.
    Scores of a pass over held-out rows, from all pairs: `auc` and `eer` of telling by the distance whether two are of
    one class, `one_shot` accuracy with a single example of each class.

    encoder:     a supervised family, built for a regression with `size` values; its own augmentation and dropout apply,
                 its own learning rule (a deep belief network's pretraining) does not
    size:        units of an embedding
    normalize:   whether embeddings are scaled to length one
    loss:        contrastive, triplet (both of Euclidean distances), or ntxent (of cosines)
    margin:      of contrastive: beyond which others need not be; of triplet: how much farther than one's own
    temperature: of ntxent
    references:  rows that each batch is held against
    turns:       1, or how many quarter turns (up to 4) of an image are of classes of their own in training (square
                 images): more classes teach what tells classes apart, rather than these classes.  With 2 no image
                 stands on its head, where some (0 and 1 among digits) look as before
    halves:      share of the images that get the lower half of another in training, and are of the class of both: so
                 parts are told apart that no class of the training rows has alone
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})
    tasks: ClassVar[frozenset[str]] = frozenset({"multiclass", "binary", "verification"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        encoder: Callable[..., SupervisedFamily],
        size: int,
        normalize: bool,
        loss: str,
        margin: float,
        temperature: float,
        references: int,
        turns: int,
        halves: float,
    ) -> None:
        super().__init__(spec=spec)
        if min(size, references) < 1:
            raise ConfigError(
                f"Siamese needs at least one unit and one reference, got size={size}, references={references}"
            )
        if loss not in LOSSES:
            raise ConfigError(f"family.loss needs a known loss, got {loss!r}; {nearest(loss, LOSSES)}")
        if not (margin > 0 and temperature > 0):
            raise ConfigError(
                f"Siamese needs a positive margin and temperature, got margin={margin}, temperature={temperature}"
            )
        if not 1 <= turns <= 4:
            raise ConfigError(f"family.turns needs 1 to 4 quarter turns, got {turns}")
        if turns > 1 and (spec.kind != "image" or spec.shape[1] != spec.shape[2]):
            raise ConfigError(f"family.turns needs square images, got {spec.name} ({spec.kind} {spec.shape}); set 1")
        if not 0 <= halves <= 1 or (halves > 0 and spec.kind != "image"):
            raise ConfigError(
                f"family.halves needs a share of images, got {halves} for {spec.name} ({spec.kind}); set 0"
            )
        inner = embedding_spec(spec, size)
        self.encoder = inner_network(encoder, inner, key="encoder", fitting=ENCODERS, has_rows=True)
        self.output_names = inner.targets
        self.normalize = normalize
        self.loss_name = loss
        self.margin = margin
        self.temperature = temperature
        self.num_references = references
        self.turns = turns
        self.halves = halves
        self.references: References | None = None
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # embeddings and labels of held-out rows, by stage

    def start(self, batch: Batch) -> None:
        self.references = References(batch[0], self._labels(batch[1]))
        if isinstance(self.encoder, StartsFromInputs):
            self.encoder.start_from(batch[0])

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The encoder's: the projection to an embedding forgets what does not tell pairs apart, and what is before it
        transfers better (Chen et al. 2020, SimCLR, section 4.2)."""
        return self.encoder.features(inputs, context)

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(f"encoder.{name}" for name in self.encoder.heads)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        embeddings_BE = self.encoder(inputs, context)
        return F.normalize(embeddings_BE, dim=1) if self.normalize else embeddings_BE

    @staticmethod
    def _labels(targets: Tensor) -> Tensor:
        """Class indices or identities, [B]; those of a binary task come as one column of floats."""
        return targets.flatten().long()

    def objective(self, batch: Batch, context: Context) -> Objective:
        inputs, labels_B = batch[0], self._labels(batch[1])
        if not context.training:
            return Objective(self._held_out_loss(self(inputs, context), labels_B))
        if self.references is None:
            raise ConfigError("Siamese needs the training rows to draw references from; call family.start(rows)")
        drawn, labels_R = self.references.draw(self.num_references, context.key(DRAW_SITE))
        # One pass for both.  References have rows of their own, below zero, so that they draw apart from the batch.
        slots_R = -1 - torch.arange(self.num_references, dtype=torch.int32, device=inputs.device)
        joint = dataclasses.replace(context, rows=torch.cat([context.rows, slots_R]))
        seen, labels = self._join_halves(torch.cat([inputs, drawn]), torch.cat([labels_B, labels_R]), joint)
        seen, labels = self._turn(seen, labels, joint)
        embeddings = self(self.encoder.augment(seen, joint), joint)
        num_rows = len(inputs)
        rows_BE, references_RE = embeddings[:num_rows], embeddings[num_rows:]
        same_BR = labels[:num_rows].unsqueeze(1) == labels[num_rows:]
        losses_B = self._losses(rows_BE, references_RE, same_BR, ~same_BR)
        return Objective(losses_B.mean(), self._quick_metrics(rows_BE, references_RE, same_BR, context))

    def _join_halves(self, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if self.halves == 0:
            return images, labels
        assert self.references is not None
        others, other_labels = self.references.partners(context.rows, context.key(PARTNER_SITE))
        joined = counter.bernoulli(context.key(HALVES_SITE), context.rows, (), self.halves)
        lower = torch.arange(images.shape[2], device=images.device).view(-1, 1) >= images.shape[2] // 2
        images = torch.where(joined.view(-1, 1, 1, 1) & lower, others, images)
        return images, labels * self.references.num_labels + torch.where(joined, other_labels, labels)

    def _turn(self, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if self.turns == 1:
            return images, labels
        turns = (self.turns * counter.uniform(context.key(TURN_SITE), context.rows, ())).long()
        turned = images
        for quarters in range(1, self.turns):
            turned = torch.where((turns == quarters).view(-1, 1, 1, 1), images.rot90(quarters, (2, 3)), turned)
        return turned, self.turns * labels + turns

    def _losses(self, rows_BE: Tensor, references_RE: Tensor, same_BR: Tensor, other_BR: Tensor) -> Tensor:
        if self.loss_name == "ntxent":
            similarities = F.normalize(rows_BE, dim=1) @ F.normalize(references_RE, dim=1).T
            return _pairs.ntxent(similarities, same_BR, other_BR, self.temperature)
        loss = _pairs.contrastive if self.loss_name == "contrastive" else _pairs.triplet
        return loss(_pairs.distances(rows_BE, references_RE), same_BR, other_BR, self.margin)

    @staticmethod
    def _quick_metrics(rows_BE: Tensor, references_RE: Tensor, same_BR: Tensor, context: Context) -> dict[str, Tensor]:
        if not context.measure:
            return {}
        distances_BR = _pairs.distances(rows_BE.detach(), references_RE.detach())
        return {
            "distance_same": _pairs.mean_where(distances_BR, same_BR, 1),
            "distance_different": _pairs.mean_where(distances_BR, ~same_BR, 1),
        }

    # Held-out rows are paired among themselves, since their classes need not occur in training.

    @property
    def score_names(self) -> list[str]:
        return ["loss", "auc", "eer", "one_shot"]

    def _held_out_loss(self, embeddings_NE: Tensor, labels_N: Tensor) -> Tensor:
        places_R = spread(len(labels_N), HELD_OUT_REFERENCES, labels_N.device)
        itself_NR = torch.arange(len(labels_N), device=labels_N.device).unsqueeze(1) == places_R
        same_NR = labels_N.unsqueeze(1) == labels_N[places_R]
        return self._losses(embeddings_NE, embeddings_NE[places_R], same_NR & ~itself_NR, ~same_NR).mean()

    def _evaluate(self, batch: Batch, stage: str) -> None:
        seen = self(batch[0], self._context(batch, 0, training=False)).detach(), self._labels(batch[1])
        self._seen.setdefault(stage, []).append(seen)

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        embeddings_NE, labels_N = gathered(*(torch.cat(column) for column in zip(*self._seen.pop(stage), strict=True)))
        scores = {"loss": self._held_out_loss(embeddings_NE, labels_N)}
        distances_NN, labels_N = _paired(embeddings_NE, labels_N)
        curve = _pairs.roc(*_pairs.all_pairs(distances_NN, labels_N))
        return scores | {"auc": curve.auc, "eer": curve.eer[0], "one_shot": _pairs.one_shot(distances_NN, labels_N)}

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        pairs_P, same_P = _pairs.all_pairs(*_paired(self(batch[0]), self._labels(batch[1])))
        if not bool(same_P.any()) or bool(same_P.all()):
            return {}
        curve = _pairs.roc(pairs_P, same_P)
        kinds = {"same": pairs_P[same_P], "different": pairs_P[~same_P]}
        shown = {
            name: values.sort().values[spread(len(values), SHOWN_PAIRS, values.device)]
            for name, values in kinds.items()
        }
        points_T = spread(len(curve.thresholds), SHOWN_POINTS, pairs_P.device)
        rates = {"false_positive_rate": curve.false_positive_rate, "true_positive_rate": curve.true_positive_rate}
        return {
            "pair_distances": shown | {"threshold": curve.eer[1]},
            "roc": {name: rate[points_T] for name, rate in rates.items()} | {"auc": curve.auc, "eer": curve.eer[0]},
        }


def spread(length: int, most: int, device: torch.device) -> Tensor:
    """All places of range(length), or so many of them, evenly."""
    return torch.arange(min(length, most), device=device) * length // min(length, most)


def gathered(embeddings_NE: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The held-out rows of all workers, [N, E] and [N], on each."""
    if not dist.is_initialized():
        return embeddings_NE, labels_N
    num_workers, device = dist.get_world_size(), labels_N.device
    parts: list[tuple[Tensor, Tensor]] = [(embeddings_NE, labels_N)] * num_workers
    dist.all_gather_object(parts, (embeddings_NE.cpu(), labels_N.cpu()))
    alike = all(torch.equal(own, other) for part in parts for own, other in zip(part, parts[0], strict=True))
    if alike and len(parts[0][1]) < num_workers:  # workers that outnumber the rows have all of them each
        parts = parts[:1]
    all_embeddings, all_labels = zip(*parts, strict=True)
    return torch.cat(all_embeddings).to(device), torch.cat(all_labels).to(device)


def _paired(embeddings_NE: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(distances, labels) of the held-out rows whose pairs are scored."""
    places = spread(len(labels_N), PAIRED_ROWS, labels_N.device)
    chosen = embeddings_NE[places].double()
    return _pairs.distances(chosen, chosen), labels_N[places]
