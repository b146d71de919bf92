"""The siamese network: losses of pytorch-metric-learning, scores of scikit-learn, pairs that have no order."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.reducers import MeanReducer
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families import _pairs
from neurofleet.families._inner import StartsFromInputs
from neurofleet.families._pairs import gathered, spread
from neurofleet.families._references import References
from neurofleet.families.siamese import ENCODERS, Siamese
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "family"


def encoder(name: str, **changes: Any) -> Callable[..., Any]:
    """As an experiment gives it."""
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return functools.partial(experiments.build, config | changes)


ENCODER = encoder("mlp", hidden=[7], activation="tanh")
DISTORTION = {"degrees": 20.0, "scale": 0.1, "translation": 0.1}
MOVING = encoder("cnn", channels=[4], kernel_size=3, hidden=6, dropout=0.3, augmentation=DISTORTION)


SETTINGS: dict[str, Any] = {
    "encoder": ENCODER,
    "pairs": "labels",
    "size": 5,
    "normalize": True,
    "loss": "contrastive",
    "margin": 0.8,
    "temperature": 0.2,
    "references": 12,
    "turns": 1,
    "halves": 0.0,
    "erasing": 0.0,
}


def make(spec: DataSpec, **settings: Any) -> Siamese:
    return Siamese(spec=spec, **SETTINGS | settings).double()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LIBRARY: dict[str, Callable[[], Any]] = {
    "contrastive": lambda: library.ContrastiveLoss(
        pos_margin=0, neg_margin=0.8, distance=LpDistance(), reducer=MeanReducer()
    ),
    "triplet": lambda: library.TripletMarginLoss(margin=0.8, distance=LpDistance(), reducer=MeanReducer()),
    "ntxent": lambda: library.NTXentLoss(temperature=0.2, distance=CosineSimilarity(), reducer=MeanReducer()),
}


@pytest.mark.parametrize("loss", LIBRARY)
def test_losses_are_those_of_the_library(loss: str, make_spec: MakeSpec) -> None:
    """Its means go over all pairs (or triplets) at once, ours over each row's first: alike where rows have as many."""
    family = make(make_spec(), loss=loss)
    embeddings, references = (torch.nn.functional.normalize(rows(number, 5, seed=number)) for number in (6, 9))
    labels, other_labels = torch.arange(6) % 3, torch.arange(9) % 3
    same = labels.unsqueeze(1) == other_labels
    ours = family._losses(embeddings, references, same, ~same)
    theirs = LIBRARY[loss]()(embeddings, labels, ref_emb=references, ref_labels=other_labels)
    assert ours.shape == (6,)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ours.std() > 0.01


def test_a_row_without_partners_weighs_nothing_on_that_side() -> None:
    near = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    every, none = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)
    assert _pairs.contrastive(near, every, none, 1.0).item() == pytest.approx(0.35)
    assert _pairs.contrastive(near, none, every, 1.0).item() == pytest.approx(0.65)
    for loss in (_pairs.triplet, _pairs.ntxent):
        assert loss(near, none, every, 1.0).item() == 0
    assert _pairs.triplet(near, every, none, 1.0).item() == 0
    assert _pairs.ntxent(near, every, none, 1.0).item() == pytest.approx(0, abs=1e-12)


def test_swapping_a_pair_changes_nothing(make_spec: MakeSpec) -> None:
    """Neither its distance nor its loss, nor what a gradient does to the encoder."""
    spec = make_spec()
    left, right = rows(8, 4), rows(8, 4, seed=2)
    same = torch.eye(8, dtype=torch.bool)
    family = make(spec)
    torch.testing.assert_close(
        _pairs.distances(family(left), family(right)), _pairs.distances(family(right), family(left)).T
    )
    for loss in ("contrastive", "ntxent"):
        gradients = []
        family = make(spec, loss=loss)
        for first, second in ((left, right), (right, left)):
            for index in range(8):  # one pair at a time, of one kind or the other
                kind = same[index : index + 1, :1]
                value = family._losses(family(first[index : index + 1]), family(second[index : index + 1]), kind, ~kind)
                gradients.append(torch.autograd.grad(value.sum(), list(family.parameters())))
        for index in range(8):
            torch.testing.assert_close(gradients[index], gradients[8 + index], rtol=1e-9, atol=1e-12)
        assert any(float(one.abs().max()) > 1e-3 for gradient in gradients for one in gradient) is (
            loss == "contrastive"
        )


def test_references_are_training_rows_of_every_class() -> None:
    labels = torch.tensor([7] * 50 + [3] + [9] * 5)
    references = References(torch.arange(56.0).unsqueeze(1), labels)
    seen = set()
    for step in range(200):
        inputs, drawn = references.draw(11, step)
        assert torch.equal(labels[inputs[:, 0].long()], drawn)
        assert {2, 3, 4, 5} >= {(drawn == one).sum().item() for one in (3, 7, 9)}
        seen |= set(inputs[:, 0].tolist())
    assert seen == set(range(56)), "each row has its turn"


def test_more_classes_than_references() -> None:
    references = References(torch.zeros(100, 1), torch.arange(100))
    drawn = torch.cat([references.draw(7, step)[1] for step in range(300)])
    counts = torch.bincount(drawn, minlength=100)
    assert counts.min() > 3
    assert counts.max() < 60


def test_the_objective_by_hand(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family, train = make(make_spec()), rows(40, 4)
    targets = torch.arange(40) % 3
    family.start((train, targets))
    assert family.references is not None
    context = make_context(6, seed=3, step=9)
    drawn, labels = family.references.draw(12, context.key(2000))
    total = 0.0
    for row in range(6):
        apart = (family(train[row : row + 1]) - family(drawn)).norm(dim=1)
        same = labels == targets[row]
        total += apart[same].mean().item() + (0.8 - apart[~same]).relu().mean().item()
    objective = family.objective((train[:6], targets[:6]), context)
    assert objective.loss.item() == pytest.approx(total / 6, rel=1e-6)  # a distance of zero is 1e-6
    assert {name: value.shape for name, value in objective.metrics.items()} == {
        "distance_same": (6,),
        "distance_different": (6,),
    }


@pytest.mark.parametrize("loss", LIBRARY)
@pytest.mark.parametrize("drawing", [{"halves": 0.5}, {"turns": 4, "halves": 0.5}, {"pairs": "views", "erasing": 0.4}])
def test_parts_make_the_whole(
    loss: str, drawing: dict[str, Any], make_spec: MakeSpec, make_context: MakeContext
) -> None:
    """With everything that is drawn: references, distortions, turns, dropout, second views."""
    family = make(make_spec(shape=(1, 8, 8)), encoder=MOVING, loss=loss, **drawing)
    train, targets = rows(40, 1, 8, 8), torch.arange(40) % 3
    family.start((train, targets))
    whole = family.objective((train[:9], targets[:9]), make_context(9)).loss
    parts = [
        family.objective((train[first:last], targets[first:last]), make_context(last - first, first_row=first)).loss
        * ((last - first) / 9)
        for first, last in ((0, 2), (2, 3), (3, 9))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-13)
    parameters = list(family.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), parameters), torch.autograd.grad(whole, parameters), rtol=1e-9, atol=1e-12
    )


VIEWS: dict[str, Any] = {"encoder": MOVING, "pairs": "views", "loss": "ntxent", "erasing": 0.4}


def test_views_are_those_of_the_library(make_spec: MakeSpec, make_context: MakeContext) -> None:
    """NT-Xent of each row's two views, either way, with the references' views as negatives; one that is a view of the
    same row is of its kind, as there."""
    family, train = make(make_spec(shape=(1, 8, 8)), **VIEWS), rows(20, 1, 8, 8)
    family.start((train, torch.zeros(20)))
    context = make_context(9, seed=3, step=9)
    objective = family.objective((train[:9], torch.zeros(9)), context)
    assert family.references is not None
    drawn, kinds = family.references.draw(12, context.key(2000))
    numbers = [int((train == one).flatten(1).all(1).nonzero()) for one in drawn]
    assert len(set(numbers)) == len(kinds.unique()) == 12, "no row is a reference twice"
    assert 0 < sum(number < 9 for number in numbers) < 12, "some are rows of the batch"

    def view(inputs: Tensor, first_row: int, step: int = 1) -> Tensor:
        numbered = dataclasses.replace(context, rows=first_row + step * torch.arange(len(inputs), dtype=torch.int32))
        return family(family.erase(family.encoder.augment(inputs, numbered), numbered), numbered)

    first, second, references = view(train[:9], 0), view(train[:9], -13, -1), view(drawn, -1, -1)
    assert (first - second).norm(dim=1).min().item() > 0.01
    total = 0.0
    for one, other in ((first, second), (second, first)):
        for row in range(9):
            candidates = torch.cat([other[row : row + 1], references])
            labels = torch.tensor([row]), torch.tensor([row, *numbers])
            loss = LIBRARY["ntxent"]()(one[row : row + 1], labels[0], ref_emb=candidates, ref_labels=labels[1])
            total += loss.item() / 18
    assert objective.loss.item() == pytest.approx(total, rel=1e-6)
    torch.testing.assert_close(objective.metrics["distance_same"], (first - second).norm(dim=1))


def test_views_read_no_label(make_spec: MakeSpec, make_context: MakeContext) -> None:
    """Neither a step nor the loss of held-out rows; what is measured with labels is."""
    train, classes = rows(40, 1, 8, 8), torch.arange(40) % 3
    found = []
    for labels in (classes, torch.zeros(40), torch.arange(40) // 14):
        torch.manual_seed(0)
        family = make(make_spec(shape=(1, 8, 8)), **VIEWS)
        family.start((train, labels))
        loss = family.objective((train[:9], labels[:9]), make_context(9)).loss
        gradients = torch.autograd.grad(loss, list(family.parameters()))
        found.append((loss, gradients, family.evaluate([(train, labels)])))
    for loss, gradients, scores in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert all(map(torch.equal, gradients, found[0][1]))
        assert scores["loss"] == found[0][2]["loss"]
    assert found[0][2]["auc"] != found[2][2]["auc"]


def test_views_of_held_out_rows_are_their_own(make_spec: MakeSpec) -> None:
    """However a pass is cut into batches, and near a right answer once two views are alike."""
    family, inputs, targets = make(make_spec(shape=(1, 8, 8)), **VIEWS), rows(50, 1, 8, 8), torch.arange(50) % 3
    whole = family.evaluate([(inputs, targets)])
    assert family.evaluate(zip(inputs.split(7), targets.split(7), strict=True)) == pytest.approx(whole, rel=1e-9)
    context = family._context((inputs, targets), 0, training=False)
    plain, first, second = family._embed(inputs, context).unbind(1)
    torch.testing.assert_close(plain, family(inputs))
    alike = torch.stack([plain, plain, plain], dim=1)
    assert (first - second).norm(dim=1).min().item() > 0.01
    assert family._held_out_loss(alike, targets) < family._held_out_loss(
        torch.stack([plain, first, second], 1), targets
    )


def test_views_that_do_not_differ_are_refused(make_spec: MakeSpec) -> None:
    batch = rows(20, 1, 8, 8), torch.zeros(20)
    with pytest.raises(ConfigError, match=r"family\.pairs=views needs views that differ, .* raise family\.encoder"):
        make(make_spec(shape=(1, 8, 8)), pairs="views").start(batch)
    make(make_spec(shape=(1, 8, 8)), pairs="views", encoder=encoder("mlp", dropout=0.3)).start(batch)


@pytest.mark.parametrize("turns", [2, 4])
def test_a_turned_image_is_of_another_class(turns: int, make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(1, 8, 8)), turns=turns)
    images, labels = rows(200, 1, 8, 8), torch.arange(200) % 3
    turned, new = family._turn(images, labels, make_context(200))
    assert torch.equal(new // turns, labels)
    for row in range(200):
        assert torch.equal(turned[row], images[row].rot90(int(new[row] % turns), (1, 2)))
    assert torch.bincount(new % turns, minlength=turns).min() > 30


def test_joined_halves_are_of_the_class_of_both(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(1, 9, 8)), halves=0.4)
    train = torch.arange(3.0).repeat(20).view(60, 1, 1, 1).expand(60, 1, 9, 8)  # each image shows its class
    labels = torch.arange(3).repeat(20)
    family.start((train, labels))
    joined, new = family._join_halves(train, labels, make_context(60))
    assert torch.equal(joined[:, 0, :4], train[:, 0, :4])
    assert torch.equal(joined[:, 0, 4:].amax(dim=(1, 2)), joined[:, 0, 4:].amin(dim=(1, 2)))
    assert torch.equal(new, 3 * joined[:, 0, 0, 0].long() + joined[:, 0, 8, 0].long())
    assert 8 <= (new // 3 != new % 3).sum() <= 24, "two thirds of 40 % get the half of another class"


def test_the_curve_is_that_of_scikit_learn() -> None:
    distances = (rows(500).abs() * 5).round() / 5  # with ties
    same = rows(500, seed=2) > distances - 0.5
    curve = _pairs.roc(distances, same)
    assert curve.auc.item() == pytest.approx(roc_auc_score(same.numpy(), -distances.numpy()), rel=1e-12)
    false, true, _ = roc_curve(same.numpy(), -distances.numpy(), drop_intermediate=False)
    torch.testing.assert_close(curve.false_positive_rate, torch.from_numpy(false))
    torch.testing.assert_close(curve.true_positive_rate, torch.from_numpy(true))
    rate, threshold = curve.eer
    fine = torch.linspace(0, 1, 100_001, dtype=torch.float64).numpy()
    misses = 1 - np.interp(fine, false, true)
    assert rate.item() == pytest.approx(fine[np.abs(misses - fine).argmin()], abs=1e-4)
    assert curve.thresholds.min() <= threshold <= curve.thresholds.max()


def test_the_curve_of_what_is_told_apart_perfectly_or_never() -> None:
    distances = torch.tensor([0.1, 0.2, 0.8, 0.9])
    good = torch.tensor([True, True, False, False])
    assert _pairs.roc(distances, good).auc == 1
    assert _pairs.roc(distances, good).eer[0] == 0
    assert _pairs.roc(distances, ~good).auc == 0
    assert _pairs.roc(distances, ~good).eer[0] == 1
    assert _pairs.roc(torch.ones(4), good).auc == 0.5
    assert _pairs.roc(torch.ones(4), good).eer[0] == 0.5
    for one_kind in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        assert math.isnan(_pairs.roc(distances, one_kind).auc)
        assert math.isnan(_pairs.roc(distances, one_kind).eer[0])


def test_one_shot_by_hand() -> None:
    places = torch.tensor([0.0, 1.0, 10.0, 11.0, 4.0])
    labels = torch.tensor([5, 5, 2, 2, 2])
    distances = (places.unsqueeze(1) - places).abs()
    # Supports 10 and 0: queries 1 and 11 are right, 4 is wrong.  Then 11 and 1: 0 and 10 are right, 4 is wrong.
    assert _pairs.one_shot(distances, labels).item() == pytest.approx(4 / 6)


def test_scores_go_over_the_whole_pass(make_spec: MakeSpec) -> None:
    """However it is cut into batches."""
    family, inputs, targets = make(make_spec()), rows(50, 4), torch.arange(50) % 3
    scores: list[dict[str, float]] = []
    for size in (50, 7):
        family.log = lambda name, value, **_: scores[-1].update({name: float(value)})  # type: ignore[method-assign]
        scores.append({})
        for batch in zip(inputs.split(size), targets.split(size), strict=True):
            family._context = lambda *_, **__: None  # type: ignore[assignment, method-assign]
            family.validation_step(batch, 0)
        family.on_validation_epoch_end()
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)
    assert set(scores[0]) == {f"val/{name}" for name in family.score_names}
    apart, same = _pairs.all_pairs(torch.cdist(family(inputs), family(inputs)), targets)
    assert len(apart) == 50 * 49 / 2
    assert scores[0]["val/auc"] == pytest.approx(roc_auc_score(same.numpy(), -apart.detach().numpy()), abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "num_rows"),
    [
        ([[1, 0, 1, 0], [1, 0, 1, 0]], 8),  # alike on both workers, of rows that are not
        ([[1], [0]], 2),
        ([[1]] * 2, 1),  # one row that both workers have
    ],
    ids=str,
)
def test_held_out_rows_of_all_workers(labels: list[list[int]], num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    same = num_rows == 1
    parts = [(rows(len(one), 3, seed=1 if same else seed), torch.tensor(one)) for seed, one in enumerate(labels)]

    def gather(into: list[Any], own: Any) -> None:
        assert torch.equal(own[0], parts[1][0])
        into[:] = parts

    monkeypatch.setattr(_pairs.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(_pairs.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(_pairs.dist, "all_gather_object", gather)
    embeddings, found = gathered(*parts[1])
    assert len(embeddings) == len(found) == num_rows
    torch.testing.assert_close(embeddings, torch.cat([one for one, _ in parts])[:num_rows])
    assert found.tolist() == [label for one in labels for label in one][:num_rows]


def built(name: str, *overrides: str) -> Siamese:
    composed = experiments.compose(["family=siamese", "data=digits", f"family@family.encoder={name}", *overrides])
    spec = experiments.build_data(composed).spec
    family = experiments.build_family(composed, spec)
    assert isinstance(family, Siamese)
    return family


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_family_is_an_encoder_or_is_refused(name: str, make_context: MakeContext) -> None:
    """By the command's own words, `neurofleet train family=siamese family@family.encoder=NAME`."""
    if name not in ENCODERS:
        with pytest.raises((ConfigError, MismatchError)):
            built(name)
        return
    family, images, labels = built(name), rows(20, 1, 8, 8).float(), torch.arange(20) % 10
    family.start((images, labels))
    loss = family.objective((images[:4], labels[:4]), make_context(4)).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert any(parameter.grad is not None for parameter in family.encoder.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "autoencoder",
            r"family\.encoder needs a supervised family, got Autoencoder; set family@family\.encoder to one",
        ),
        ("rbf", r"family\.encoder needs a network that can start from inputs alone, got RBF, .* one of cnn, dbn, mlp"),
    ],
)
def test_what_cannot_embed_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(name)
    with pytest.raises(MismatchError, match=r"family\.encoder: Capsule needs data of task .*; set family@family"):
        built("capsule")
    with pytest.raises(ConfigError, match=r"family\.encoder needs the config of a supervised family, got {}"):
        Siamese(spec=built("mlp").spec, **SETTINGS | {"encoder": {}})


@pytest.mark.parametrize("name", ["dbn", "spiking"])
def test_an_encoder_starts_from_the_training_rows(name: str) -> None:
    family, alone, images = built(name), built(name).encoder, rows(20, 1, 8, 8).float()
    before = {key: value.clone() for key, value in family.encoder.state_dict().items()}
    family.start((images, torch.arange(20) % 10))
    assert isinstance(alone, StartsFromInputs)
    alone.start((images, torch.empty(0)))
    after, wanted = family.encoder.state_dict(), alone.state_dict()
    started = [key for key in before if not torch.equal(before[key], after[key])]
    assert started
    assert all(torch.equal(after[key], wanted[key]) for key in started)


def test_what_the_pairs_draw_is_apart_from_what_an_encoder_draws(make_spec: MakeSpec) -> None:
    sites: list[int] = []

    class Listening(Context):
        def key(self, site: int) -> Any:
            sites.append(site)
            return super().key(site)

    drawing = encoder("dbn", hidden=[7], dropout=0.3, augmentation=DISTORTION)
    family = make(make_spec(shape=(1, 8, 8)), encoder=drawing, turns=4, halves=0.5, erasing=0.2)
    images, labels = rows(20, 1, 8, 8), torch.arange(20) % 3
    family.start((images, labels))
    context = Listening(0, 0, 0.5, torch.arange(20, dtype=torch.int32), training=True, measure=False)
    family.objective((images, labels), context)
    assert len(sites) == len(set(sites)) == 7, "references, partners, halves, turns, distortion, square, dropout"


def test_the_pictures_hold_the_pairs(make_spec: MakeSpec) -> None:
    family, inputs, targets = make(make_spec()), rows(50, 4), torch.arange(50) % 3
    shown = family.exhibits((inputs, targets))
    assert set(shown) == {"pair_distances", "roc"}
    assert len(shown["pair_distances"]["same"]) == 2 * 17 * 16 / 2 + 16 * 15 / 2
    assert shown["roc"]["false_positive_rate"][0] == 0
    assert family.exhibits((inputs, targets * 0)) == {}, "no pair is of two kinds"


def test_evenly_spread() -> None:
    assert spread(7, 10, torch.device("cpu")).tolist() == list(range(7))
    assert spread(10, 4, torch.device("cpu")).tolist() == [0, 2, 5, 7]


def test_embeddings_have_length_one_if_wanted(make_spec: MakeSpec) -> None:
    inputs = rows(9, 4)
    torch.testing.assert_close(make(make_spec())(inputs).norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert make(make_spec(), normalize=False)(inputs).norm(dim=1).std() > 0.01
    assert make(make_spec()).output_names == tuple(f"embedding_{index}" for index in range(5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"at least one unit and one reference, got size=0"),
        ({"references": 0}, r"got size=5, references=0"),
        ({"loss": "tripled"}, r"family\.loss needs a known loss, got 'tripled'; did you mean triplet"),
        ({"margin": 0.0}, r"positive margin and temperature, got margin=0\.0"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"turns": 2}, r"family\.turns needs square images, got made \(tabular \(4,\)\); set 1"),
        ({"halves": 0.5}, r"family\.halves needs a share of images, got 0\.5 for made \(tabular\); set 0"),
        ({"pairs": "vews"}, r"family\.pairs needs a known kind, got 'vews'; did you mean views"),
        ({"pairs": "views", "turns": 2}, r"make classes out of labels, got turns=2, halves=0\.0 with pairs=views"),
        ({"erasing": 0.2}, r"family\.erasing needs images, got made, which is tabular; set 0\.0"),
        ({"erasing": 1.0}, r"family\.erasing needs 0 <= erasing < 1, got 1\.0"),
        ({"turns": 5}, r"family\.turns needs 1 to 4 quarter turns, got 5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(), **settings)


def test_what_it_lacks_is_said(make_spec: MakeSpec, make_context: MakeContext) -> None:
    with pytest.raises(MismatchError, match="Siamese needs data of task binary or multiclass or verification"):
        make(make_spec(task="regression"))
    with pytest.raises(ConfigError, match=r"needs the training rows to draw references from; call family\.start"):
        make(make_spec()).objective((rows(2, 4), torch.tensor([0, 1])), make_context(2))
