"""Capsules by hand: squashing, routing by agreement over predictions that are laid out, and the margin loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families.capsule import Capsule, Routing, squash
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
MOVING = {"degrees": 15.0, "scale": 0.1, "translation": 0.1}


def make(spec: DataSpec, **settings: Any) -> Capsule:
    chosen: dict[str, Any] = {
        "channels": [8],
        "kernel_size": 3,
        "primary_types": 2,
        "primary_size": 4,
        "primary_kernel": 3,
        "primary_stride": 2,
        "capsule_size": 5,
        "routing_iterations": 3,
        "decoder": [6],
        "reconstruction": 1e-3,
        "augmentation": STILL,
    }
    return Capsule(spec=spec, **chosen | settings).double()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def routed_by_hand(primary: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Procedure 1 of the paper, for one row: (class capsules [J, D] before the squashing, couplings [N, J])."""
    num_inputs, num_outputs = len(primary), len(weight)
    matrices = weight.reshape(num_outputs, num_inputs, primary.shape[1], -1)
    predictions = torch.stack(
        [torch.stack([primary[i] @ matrices[j, i] for j in range(num_outputs)]) for i in range(num_inputs)]
    )
    logits = torch.zeros(num_inputs, num_outputs, dtype=torch.float64)
    for iteration in range(iterations):
        couplings = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        sums = torch.stack([couplings[:, j] @ predictions[:, j] for j in range(num_outputs)])
        lengths = sums.norm(dim=1, keepdim=True)
        outputs = lengths**2 / (1 + lengths**2) * sums / lengths
        if iteration < iterations - 1:
            logits = logits + (predictions * outputs).sum(dim=2)
    return sums, couplings


def test_squashing_by_hand() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[3 / 5, 4 / 5], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    expected *= torch.tensor([[25 / 26], [0.2], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(squash(vectors), expected, rtol=1e-7, atol=1e-12)
    assert bool(torch.isfinite(torch.func.grad(lambda one: squash(one).sum())(vectors)).all())


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_routing_is_that_of_the_paper(iterations: int) -> None:
    routing, primary = Routing(7, 4, 3, 5, iterations).double(), squash(3 * rows(6, 7, 4))
    with torch.no_grad():
        routing.weight.mul_(8)  # so that couplings move far from being alike
    sums_JBD, couplings_JBN = routing(primary), routing.couplings(primary)
    assert couplings_JBN.shape == (3, 6, 7)
    torch.testing.assert_close(couplings_JBN.sum(dim=0), torch.ones(6, 7, dtype=torch.float64), rtol=1e-14, atol=0)
    assert (couplings_JBN.std().item() > 0.1) is (iterations > 1)
    for row in range(6):
        sums, couplings = routed_by_hand(primary[row], routing.weight.detach(), iterations)
        torch.testing.assert_close(sums_JBD[:, row], sums, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(couplings_JBN[:, row].T, couplings, rtol=1e-7, atol=1e-9)


def test_gradients_go_through_the_last_sum_alone() -> None:
    routing, primary = Routing(7, 4, 3, 5, 3).double(), rows(6, 7, 4).requires_grad_()
    matrices = routing.weight.view(3, 7, 4, 5)
    predictions = torch.einsum("bne,jned->jbnd", primary, matrices)
    by_hand = torch.einsum("jbn,jbnd->jbd", routing.couplings(primary.detach()), predictions)
    probe = rows(3, 6, 5, seed=2)
    expected = torch.autograd.grad((by_hand * probe).sum(), [primary, routing.weight])
    got = torch.autograd.grad((routing(primary) * probe).sum(), [primary, routing.weight])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_outputs_are_the_log_odds_of_lengths(make_spec: MakeSpec) -> None:
    family, images = make(make_spec(shape=(2, 9, 8))), rows(4, 2, 9, 8)
    lengths = squash(family.vectors(images)).norm(dim=-1)
    assert lengths.shape == (4, 3)
    torch.testing.assert_close(family(images).sigmoid(), lengths, rtol=1e-6, atol=1e-9)


def test_the_units_of_a_primary_capsule_lie_at_one_place(make_spec: MakeSpec) -> None:
    """A pixel in a corner moves the capsules of that corner alone."""
    family, seen = make(make_spec(shape=(1, 8, 8)), primary_kernel=1), []
    family.norms = torch.nn.ModuleList([torch.nn.Identity()])  # which would spread it
    family.routing.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    images[1, 0, 0, 0] = 5.0
    family(images)
    changed = (seen[0][0] != seen[0][1]).any(dim=-1)
    assert changed.tolist() == [True, True] + [False] * 6, "2 places a side, 2 types each"


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_the_loss_by_hand(task: str, make_spec: MakeSpec, make_context: MakeContext) -> None:
    spec = make_spec(task=task, shape=(1, 8, 8), num_outputs=1 if task == "binary" else 3)
    family, images = make(spec), rows(4, 1, 8, 8)
    classes = torch.tensor([0, 1, 2, 1])
    targets = {
        "multiclass": classes,
        "binary": (classes > 0).double().unsqueeze(1),
        "multilabel": torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64),
    }[task]
    present = F.one_hot(classes, 3).double() if task == "multiclass" else targets
    capsules = squash(family.vectors(images))
    margin = 0.0
    for row in range(4):
        for one in range(spec.num_outputs):
            length = capsules[row, one].norm().item()
            margin += max(0, 0.9 - length) ** 2 if present[row, one] else 0.5 * max(0, length - 0.1) ** 2
    hidden = (capsules * present.unsqueeze(-1)).flatten(1)
    first, last = family.decoder
    rebuilt = last(first(hidden).relu()).view_as(images)
    errors = (rebuilt - images).square().sum(dim=(1, 2, 3)).detach()
    objective = family.objective((images, targets), make_context(4))
    assert objective.loss.item() == pytest.approx(margin / 4 + 1e-3 * errors.mean().item(), rel=1e-6)
    torch.testing.assert_close(objective.metrics["reconstruction_error"], errors / 64, rtol=1e-6, atol=0)
    held_out = family.objective((images, targets), make_context(4, training=False))
    assert held_out.loss.item() == pytest.approx(margin / 4, rel=1e-6)


def test_a_row_does_not_depend_on_its_batch_mates(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family, images = make(make_spec(shape=(2, 9, 8)), augmentation=MOVING), rows(5, 2, 9, 8)
    whole = family(family.augment(images, make_context(5)))
    alone = family(family.augment(images[3:4], make_context(1, first_row=3)))
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-12, atol=1e-13)
    assert not torch.equal(family.augment(images, make_context(5)), images)


def test_the_picture_holds_what_the_decoder_says(make_spec: MakeSpec) -> None:
    spec = make_spec(shape=(2, 9, 8), input_mean=(10.0, 20.0), input_std=(2.0, 4.0))
    family, images = make(spec), rows(20, 2, 9, 8)
    shown = family.exhibits((images, torch.zeros(20, dtype=torch.long)))["capsule_dimensions"]
    capsules = squash(family.vectors(images))
    winners = capsules.norm(dim=-1).argmax(dim=1)
    first = [winners.tolist().index(one) for one in sorted(set(winners.tolist()))][:3]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.input_mean, spec.input_std))
    torch.testing.assert_close(shown["images"], images[first] * std + mean)
    assert shown["reconstructions"].shape == (len(first), 5, 9, 2, 9, 8)
    moved = capsules[first[0]].clone()
    moved[winners[first[0]], 4] += shown["moves"][1]
    present = F.one_hot(winners[first[0]], 3).double().unsqueeze(0)
    rebuilt = family.decode(moved.unsqueeze(0), present)[0] * std + mean
    torch.testing.assert_close(shown["reconstructions"][0, 4, 1], rebuilt, rtol=1e-6, atol=1e-9)


def test_what_any_classifier_shows_is_shown(make_spec: MakeSpec) -> None:
    pictures = make(make_spec(shape=(1, 8, 8))).exhibits((rows(20, 1, 8, 8), torch.arange(20) % 3))
    assert set(pictures) == {"capsule_dimensions", "reliability", "worst_mistakes"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, r"at least one stage.*channels=\[\]"),
        ({"decoder": [0]}, r"at least one unit.*decoder=\[0\]"),
        ({"primary_types": 0}, r"family\.primary_types needs at least 1, got 0"),
        ({"routing_iterations": 0}, r"family\.routing_iterations needs at least 1, got 0"),
        ({"kernel_size": 4}, r"family\.kernel_size needs an odd number, got 4; try 5"),
        ({"primary_kernel": 0}, r"family\.primary_kernel needs an odd number, got 0; try 1"),
        ({"reconstruction": -1.0}, r"family\.reconstruction needs a weight >= 0, got -1"),
        ({"channels": [4] * 4}, r"4 stages need images of at least 16 pixels a side, got 8 .* at most 3 entries"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(2, 9, 8)), **settings)


def test_what_is_no_image_or_no_class_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(MismatchError, match="Capsule needs data of kind image"):
        make(make_spec(shape=(4,)))
    with pytest.raises(MismatchError, match="Capsule needs data of task binary or multiclass or multilabel"):
        make(make_spec(task="regression", shape=(1, 8, 8)))
