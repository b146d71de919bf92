"""Pairs of embeddings: how far they lie apart, what a loss says of them, and how well distances tell same from other.

Each loss takes the rows of a batch against references and gives one value a row, so that the loss of a batch is the
mean of its parts': the formulas are those of pytorch-metric-learning with `ref_emb`, whose own code picks pairs by data
dependent shapes and therefore cannot run under `vmap`.

Shape suffixes: B rows, R references, E units of an embedding, N held-out rows, P pairs, T thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from neurofleet.families._layers import squared_distances

TINY = 1e-12
PAIRED_ROWS = 2048  # of held-out rows; all their pairs are scored
ONE_SHOT_ROUNDS = 10  # each class's first row is the support, then its second, ...


def distances(first_BE: Tensor, second_RE: Tensor) -> Tensor:
    """Euclidean, [B, R]."""
    return squared_distances(first_BE, second_RE).clamp(min=TINY).sqrt()


def own_distances(first_BE: Tensor, second_BE: Tensor) -> Tensor:
    """Euclidean, of each row from the row at its place, [B]."""
    return (first_BE - second_BE).square().sum(dim=1).clamp(min=TINY).sqrt()


def cosines(first_BE: Tensor, second_RE: Tensor) -> Tensor:
    """Of the angles, [B, R]."""
    return F.normalize(first_BE, dim=1) @ F.normalize(second_RE, dim=1).T


def mean_where(values: Tensor, chosen: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The mean of the chosen values along `dims`; zero where none is chosen."""
    number = chosen.sum(dim=dims).clamp(min=1)
    return torch.where(chosen, values, 0.0).sum(dim=dims) / number


def contrastive(distances_BR: Tensor, same_BR: Tensor, other_BR: Tensor, margin: float) -> Tensor:
    """Hadsell, Chopra and LeCun 2006, without their squares: [B]."""
    apart = mean_where((margin - distances_BR).relu(), other_BR, 1)
    return mean_where(distances_BR, same_BR, 1) + apart


def triplet(distances_BR: Tensor, same_BR: Tensor, other_BR: Tensor, margin: float) -> Tensor:
    """Schroff, Kalenichenko and Philbin 2015, over all triplets: [B]."""
    losses_BRR = (distances_BR.unsqueeze(2) - distances_BR.unsqueeze(1) + margin).relu()
    return mean_where(losses_BRR, same_BR.unsqueeze(2) & other_BR.unsqueeze(1), (1, 2))


def ntxent(similarities_BR: Tensor, same_BR: Tensor, other_BR: Tensor, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross-entropy of Sohn 2016 and Chen et al. 2020: each reference of the same
    class against all of other classes, [B]."""
    logits_BR = similarities_BR / temperature
    lowest = torch.finfo(logits_BR.dtype).min
    others_B = torch.where(other_BR, logits_BR, lowest).logsumexp(dim=1)
    return mean_where(torch.logaddexp(logits_BR, others_B.unsqueeze(1)) - logits_BR, same_BR, 1)


class Curve(NamedTuple):
    """How many pairs of each kind are taken for the same at growing distance, each [T]; ties are taken at once."""

    thresholds: Tensor
    false_positive_rate: Tensor
    true_positive_rate: Tensor

    @property
    def auc(self) -> Tensor:
        return torch.trapezoid(self.true_positive_rate, self.false_positive_rate)

    @property
    def eer(self) -> tuple[Tensor, Tensor]:
        """(the rate at which both errors are equal, on straight lines between thresholds; the threshold)."""
        gap_T = self.false_positive_rate - (1 - self.true_positive_rate)  # grows from -1 to 1
        after = (gap_T >= 0).to(torch.int8).argmax()
        weight = -gap_T[after - 1] / (gap_T[after] - gap_T[after - 1])
        return tuple(torch.lerp(one[after - 1], one[after], weight) for one in self[1::-1])  # type: ignore[return-value]


def roc(distances_P: Tensor, same_P: Tensor) -> Curve:
    """All rates are NaN where all pairs are of one kind."""
    order = distances_P.argsort()
    thresholds, same = distances_P[order].double(), same_P[order].double()
    last = torch.cat([thresholds[1:] != thresholds[:-1], same_P.new_ones(1)])  # of each distinct distance
    rates = []
    for counts in ((1 - same).cumsum(0), same.cumsum(0)):
        rates.append(torch.cat([counts.new_zeros(1), counts[last] / counts[-1]]))
    return Curve(torch.cat([thresholds.new_zeros(1), thresholds[last]]), *rates)


def one_shot(distances_NN: Tensor, labels_N: Tensor) -> Tensor:
    """The share of rows whose nearest support is of their class, with one support of each class among the rows; the
    mean over as many choices of supports as the smallest class has rows, up to ten."""
    _, places, counts = labels_N.unique(return_inverse=True, return_counts=True)
    members = places.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    hits = []
    for index in range(min(ONE_SHOT_ROUNDS, int(counts.min()))):
        supports = members[firsts + index]
        queries = torch.ones_like(places, dtype=torch.bool)
        queries[supports] = False
        hits.append((distances_NN[queries][:, supports].argmin(dim=1) == places[queries]).double())
    return torch.cat(hits).mean()


def all_pairs(distances_NN: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(distance, whether of one class) of each pair of different rows, once."""
    first, second = torch.triu_indices(len(labels_N), len(labels_N), offset=1, device=labels_N.device)
    return distances_NN[first, second], labels_N[first] == labels_N[second]


def spread(length: int, most: int, device: torch.device) -> Tensor:
    """All places of range(length), or so many of them, evenly."""
    return torch.arange(min(length, most), device=device) * length // min(length, most)


def gathered(embeddings_NVE: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The held-out rows of all workers, [N, ...] and [N], on each."""
    if not dist.is_initialized():
        return embeddings_NVE, labels_N
    num_workers, device = dist.get_world_size(), labels_N.device
    parts: list[tuple[Tensor, Tensor]] = [(embeddings_NVE, labels_N)] * num_workers
    dist.all_gather_object(parts, (embeddings_NVE.cpu(), labels_N.cpu()))
    alike = all(torch.equal(own, other) for part in parts for own, other in zip(part, parts[0], strict=True))
    if alike and len(parts[0][1]) < num_workers:  # workers that outnumber the rows have all of them each
        parts = parts[:1]
    all_embeddings, all_labels = zip(*parts, strict=True)
    return torch.cat(all_embeddings).to(device), torch.cat(all_labels).to(device)


def paired(embeddings_NE: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(distances, labels) of the held-out rows whose pairs are scored."""
    places = spread(len(labels_N), PAIRED_ROWS, labels_N.device)
    chosen = embeddings_NE[places].double()
    return distances(chosen, chosen), labels_N[places]
