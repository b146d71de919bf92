"""Siamese network (Bromley et al. 1993): one encoder, trained so that distance says whether two inputs are of a kind.

A pair across the rows of a batch would tie the loss to how rows are shared among workers.  So all rows of a batch are
held against the same references: training rows that are drawn for the step, from each class in turn, by (seed, step)
alone.  The loss of a row depends on that row and the references; every worker embeds the same ones, and the gradients
through them add up like all others: parts make the whole exactly.  It is also the cheapest way to many pairs: B rows
and R references are B + R passes for B * R pairs.

The references come out of the training rows, which `start` is given and which are no part of the weights.

Without labels (`pairs: views`, self-supervised as in SimCLR, Chen et al. 2020) each row is a class of its own: it is
seen twice, distorted by two draws, and its other view is of its kind while the references are not.

Shape suffixes: B rows, R references, V views, E units of an embedding, N held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, nearest
from neurofleet.families import _pairs
from neurofleet.families._base import Family, Objective
from neurofleet.families._inner import StartsFromInputs, inner_network
from neurofleet.families._layers import RandomErasing, fingerprints
from neurofleet.families._references import References
from neurofleet.families._supervised import SupervisedFamily, embedding_spec
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

LOSSES = {"contrastive": _pairs.contrastive, "triplet": _pairs.triplet, "ntxent": _pairs.ntxent}
PAIRS = ("labels", "views")
DRAW_SITE, TURN_SITE, PARTNER_SITE, HALVES_SITE, ERASING_SITE = range(2000, 2005)  # beyond those of any encoder
ENCODERS = ("cnn", "dbn", "mlp", "rnn", "spiking", "transformer")
HELD_OUT_REFERENCES = 64  # what each held-out row's loss is measured against
VIEWED_ROWS = 8  # of training, to see whether views differ at all
SHOWN_PAIRS, SHOWN_POINTS = 4000, 400  # of the pictures


class Siamese(Family):
    """An encoder of any family, and distances between what it says.

    In: what the encoder takes.  Out: [B, size], of length one if `normalize`.
    Loss: of each row against the references of the step; of held-out rows against some of themselves.  Of two views,
    the mean of what each is worth with the other and against the references.
    Scores of a pass over held-out rows, from all pairs: `auc` and `eer` of telling by the distance whether two are of
    one class, `one_shot` accuracy with a single example of each class.

    encoder:     a supervised family, built for a regression with `size` values; its own augmentation and dropout apply,
                 its own learning rule (a deep belief network's pretraining) does not
    pairs:       labels, rows of a class belong together; or views, two views of a row do, and training reads no label
                 (scores of held-out rows do).  Views differ by the encoder's augmentation and dropout, and by `erasing`
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
    erasing:     side of a square of each image that training does not see, as a share of the image's own
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})
    tasks: ClassVar[frozenset[str]] = frozenset({"multiclass", "binary", "verification"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        encoder: Callable[..., SupervisedFamily],
        pairs: str,
        size: int,
        normalize: bool,
        loss: str,
        margin: float,
        temperature: float,
        references: int,
        turns: int,
        halves: float,
        erasing: float,
    ) -> None:
        super().__init__(spec=spec)
        if min(size, references) < 1:
            raise ConfigError(
                f"Siamese needs at least one unit and one reference, got size={size}, references={references}"
            )
        if loss not in LOSSES:
            raise ConfigError(f"family.loss needs a known loss, got {loss!r}; {nearest(loss, LOSSES)}")
        if pairs not in PAIRS:
            raise ConfigError(f"family.pairs needs a known kind, got {pairs!r}; {nearest(pairs, PAIRS)}")
        if pairs == "views" and (turns > 1 or halves > 0):
            raise ConfigError(
                f"family.turns and family.halves make classes out of labels, got turns={turns}, halves={halves} with "
                "pairs=views; set them to 1 and 0.0"
            )
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
        self.pairs = pairs
        self.normalize = normalize
        self.loss_name = loss
        self.margin = margin
        self.temperature = temperature
        self.num_references = references
        self.turns = turns
        self.halves = halves
        self.erase = RandomErasing(erasing, spec, site=ERASING_SITE)
        self.references: References | None = None
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # embeddings [N, V, E] and labels, by stage

    def start(self, batch: Batch) -> None:
        self.references = References(batch[0], self._kinds(batch))
        if isinstance(self.encoder, StartsFromInputs):
            self.encoder.start_from(batch[0])
        if self.pairs == "views":
            self._need_views(batch[0][:VIEWED_ROWS])

    @torch.no_grad()
    def _need_views(self, inputs: Tensor) -> None:
        rows = torch.arange(len(inputs), dtype=torch.int32, device=inputs.device)
        context = Context(0, 0, 1.0, rows, training=True, measure=False)
        first, second = (self(self._distort(inputs, one), one) for one in (context, self._again(context)))
        if torch.equal(first, second):
            raise ConfigError(
                "family.pairs=views needs views that differ, got a training that distorts nothing; raise "
                "family.encoder.augmentation or family.erasing (images), or family.encoder.dropout"
            )

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

    def _kinds(self, batch: Batch) -> Tensor:
        """What is of a kind has the same number, [B]; without labels a row is so with itself alone."""
        return self._labels(batch[1]) if self.pairs == "labels" else fingerprints(batch[0]).long()

    def _distort(self, inputs: Tensor, context: Context) -> Tensor:
        return self.erase(self.encoder.augment(inputs, context), context)

    def _again(self, context: Context) -> Context:
        """The rows' second views draw apart from the first, and from references."""
        return dataclasses.replace(context, rows=-1 - self.num_references - context.rows)

    def objective(self, batch: Batch, context: Context) -> Objective:
        inputs, kinds_B = batch[0], self._kinds(batch)
        if not context.training:
            return Objective(self._held_out_loss(self._embed(inputs, context), self._labels(batch[1])))
        if self.references is None:
            raise ConfigError("Siamese needs the training rows to draw references from; call family.start(rows)")
        drawn, kinds_R = self.references.draw(self.num_references, context.key(DRAW_SITE))
        # One pass for all.  References have rows of their own, below zero, so that they draw apart from the batch.
        slots_R = -1 - torch.arange(self.num_references, dtype=torch.int32, device=inputs.device)
        seen, rows = [inputs, drawn], [context.rows, slots_R]
        if self.pairs == "views":
            seen, rows = [*seen, inputs], [*rows, self._again(context).rows]
        joint = dataclasses.replace(context, rows=torch.cat(rows))
        images, kinds = torch.cat(seen), torch.cat([kinds_B, kinds_R])
        images, kinds = self._turn(*self._join_halves(images, kinds, joint), joint)
        embeddings = self(self._distort(images, joint), joint)
        rows_BE, references_RE, views_BE = embeddings.tensor_split((len(inputs), len(inputs) + len(drawn)))
        same_BR = kinds[: len(inputs)].unsqueeze(1) == kinds[len(inputs) :]
        own_BE = views_BE if self.pairs == "views" else None
        losses_B = self._losses(rows_BE, references_RE, same_BR, ~same_BR, own_BE)
        if own_BE is not None:  # either view may ask for the other
            losses_B = (losses_B + self._losses(own_BE, references_RE, same_BR, ~same_BR, rows_BE)) / 2
        return Objective(losses_B.mean(), self._quick_metrics(rows_BE, references_RE, same_BR, own_BE, context))

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

    def _losses(
        self, rows_BE: Tensor, references_RE: Tensor, same_BR: Tensor, other_BR: Tensor, views_BE: Tensor | None = None
    ) -> Tensor:
        """Of each row against all references, and against another view of its own if there is one: [B]."""
        cosines = self.loss_name == "ntxent"
        measured_BR = (_pairs.cosines if cosines else _pairs.distances)(rows_BE, references_RE)
        if views_BE is not None:
            own_B = (F.cosine_similarity if cosines else _pairs.own_distances)(rows_BE, views_BE)
            measured_BR = torch.cat([own_B.unsqueeze(1), measured_BR], dim=1)
            same_BR, other_BR = F.pad(same_BR, (1, 0), value=True), F.pad(other_BR, (1, 0), value=False)
        return LOSSES[self.loss_name](measured_BR, same_BR, other_BR, self.temperature if cosines else self.margin)

    @staticmethod
    def _quick_metrics(
        rows_BE: Tensor, references_RE: Tensor, same_BR: Tensor, views_BE: Tensor | None, context: Context
    ) -> dict[str, Tensor]:
        if not context.measure:
            return {}
        distances_BR = _pairs.distances(rows_BE.detach(), references_RE.detach())
        same_B = _pairs.mean_where(distances_BR, same_BR, 1)
        return {
            "distance_same": same_B if views_BE is None else _pairs.own_distances(rows_BE, views_BE).detach(),
            "distance_different": _pairs.mean_where(distances_BR, ~same_BR, 1),
        }

    # Held-out rows are paired among themselves, since their classes need not occur in training.

    @property
    def score_names(self) -> list[str]:
        return ["loss", "auc", "eer", "one_shot"]

    def _embed(self, inputs: Tensor, context: Context) -> Tensor:
        """Held-out rows as they are, and two views of each where these are what is learnt from: [N, V, E]."""
        if self.pairs == "labels":
            return self(inputs, context).unsqueeze(1)
        drawing = dataclasses.replace(context, training=True)
        views = (self._distort(inputs, one) for one in (drawing, self._again(drawing)))
        return torch.stack([self(one, context) for one in (inputs, *views)], dim=1)

    def _held_out_loss(self, embeddings_NVE: Tensor, labels_N: Tensor) -> Tensor:
        places_R = _pairs.spread(len(labels_N), HELD_OUT_REFERENCES, labels_N.device)
        itself_NR = torch.arange(len(labels_N), device=labels_N.device).unsqueeze(1) == places_R
        embeddings_NE, *views = embeddings_NVE.unbind(1)
        if views:
            return self._losses(views[0], views[1][places_R], itself_NR, ~itself_NR, views[1]).mean()
        same_NR = labels_N.unsqueeze(1) == labels_N[places_R]
        return self._losses(embeddings_NE, embeddings_NE[places_R], same_NR & ~itself_NR, ~same_NR).mean()

    def _evaluate(self, batch: Batch, stage: str) -> None:
        seen = self._embed(batch[0], self._context(batch, 0, training=False)).detach(), self._labels(batch[1])
        self._seen.setdefault(stage, []).append(seen)

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        embeddings_NVE, labels_N = _pairs.gathered(
            *(torch.cat(column) for column in zip(*self._seen.pop(stage), strict=True))
        )
        scores = {"loss": self._held_out_loss(embeddings_NVE, labels_N)}
        distances_NN, labels_N = _pairs.paired(embeddings_NVE[:, 0], labels_N)
        curve = _pairs.roc(*_pairs.all_pairs(distances_NN, labels_N))
        return scores | {"auc": curve.auc, "eer": curve.eer[0], "one_shot": _pairs.one_shot(distances_NN, labels_N)}

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        pairs_P, same_P = _pairs.all_pairs(*_pairs.paired(self(batch[0]), self._labels(batch[1])))
        if not bool(same_P.any()) or bool(same_P.all()):
            return {}
        curve = _pairs.roc(pairs_P, same_P)
        kinds = {"same": pairs_P[same_P], "different": pairs_P[~same_P]}
        shown = {
            name: values.sort().values[_pairs.spread(len(values), SHOWN_PAIRS, values.device)]
            for name, values in kinds.items()
        }
        points_T = _pairs.spread(len(curve.thresholds), SHOWN_POINTS, pairs_P.device)
        rates = {"false_positive_rate": curve.false_positive_rate, "true_positive_rate": curve.true_positive_rate}
        return {
            "pair_distances": shown | {"threshold": curve.eer[1]},
            "roc": {name: rate[points_T] for name, rate in rates.items()} | {"auc": curve.auc, "eer": curve.eer[0]},
        }
