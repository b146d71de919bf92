"""Candidates of a one-shot search are parts of one network, and the best of them train alone, in order."""

from __future__ import annotations

import copy
import csv
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, RunError
from neurofleet.experiment import Composer
from neurofleet.run import plan
from neurofleet.steps import Context
from neurofleet.study import figures, one_shot, session
from neurofleet.study.samplers import OneShot
from neurofleet.study.score_figures import rank_correlation

COMMON = ["trainer.precision=64-true", "trainer.num_threads=1", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
MLP = ["family=mlp", "data=wine", "data.batch_size=64"]
CNN = ["family=cnn", "data=digits", "data.batch_size=256", "family.dropout=0.0"]
WIDTHS = "family.hidden=[2],[4,2],[4,4]"
SEARCH = "search=one_shot"


def masked(shared: Any, part: Any) -> Any:
    """The shared network, all of whose weights are zero that are no part's."""
    whole = copy.deepcopy(shared)
    with torch.no_grad():
        for one in whole.parameters():
            one.zero_()
        for name, view in one_shot.parts(whole, part):
            view.copy_(dict(one_shot.parts(shared, part))[name])
    return whole


@pytest.mark.parametrize(
    ("base", "small", "large"),
    [
        (MLP, {"hidden": [3, 5]}, {"hidden": [6, 7]}),
        (MLP, {"hidden": [3, 5], "activation": "tanh"}, {"hidden": [3, 9], "activation": "tanh"}),
        (CNN, {"channels": [2, 3], "hidden": 5}, {"channels": [4, 5], "hidden": 8}),
        (CNN, {"channels": [2, 3], "kernel_size": 3}, {"channels": [2, 4], "kernel_size": 5}),
    ],
)
def test_a_part_is_the_shared_network_behind_a_mask(base: Any, small: Any, large: Any) -> None:
    """With relu and tanh a unit without weights is 0, so that zeros are a mask."""
    own = experiments.compose([*base, *COMMON])
    if base is CNN:
        own["family"]["norm"] = "none"
    part, shared = (plan({**own, "family": own["family"] | changes}) for changes in (small, large))
    inputs = part.supply.tensors("train", torch.device("cpu"))[0][:32]
    whole = masked(shared.family, part.family)
    state = dict(one_shot.parts(shared.family, part.family))
    assert {name: one.shape for name, one in state.items()} == {
        name: one.shape for name, one in part.family.named_parameters()
    }
    mine, theirs = torch.func.functional_call(part.family, state, (inputs,)), whole(inputs)
    assert float(theirs.detach().abs().max()) > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_channels_that_are_no_part_do_not_count_in_its_norm() -> None:
    own = experiments.compose([*CNN, *COMMON])
    part, shared = (
        plan({**own, "family": own["family"] | {"channels": channels}}).family for channels in ([3, 4], [5, 6])
    )
    inputs = plan(own).supply.tensors("train", torch.device("cpu"))[0][:8]
    state = dict(one_shot.parts(shared, part))
    mine = inputs
    for index, (width, convolution) in enumerate(zip((3, 4), shared.convolutions, strict=True)):
        kernel = convolution.weight[:width, : mine.shape[1]]
        mine = torch.nn.functional.conv2d(mine, kernel, padding=kernel.shape[-1] // 2)
        mine = torch.nn.functional.max_pool2d(mine, 2)
        flat = mine.flatten(1)
        mean, var = flat.mean(1), flat.var(1, unbiased=False)
        mine = (mine - mean.view(-1, 1, 1, 1)) / (var.view(-1, 1, 1, 1) + 1e-5).sqrt()
        norm = shared.norms[index]
        mine = part.activation(mine * norm.weight[:width].view(-1, 1, 1) + norm.bias[:width].view(-1, 1, 1))
    features = torch.nn.functional.linear(mine.flatten(1), shared.dense.weight[:, : mine[0].numel()], shared.dense.bias)
    theirs = shared.readout(part.activation(features))
    mine = torch.func.functional_call(part, state, (inputs,))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def shared_network(*overrides: str) -> Any:
    composer = Composer.of([*COMMON, *overrides, SEARCH])
    return one_shot._Shared(composer, frozenset({"val/loss"}), OneShot(num_candidates=9, max_epochs=None, seed=0))


@pytest.mark.parametrize(
    "overrides",
    [
        [*MLP, WIDTHS, "family.dropout=0.3"],
        [*CNN, "family.channels=[2,3],[4,3]", "family.kernel_size=3,5", "family.activation=relu,tanh"],
    ],
)
def test_a_step_takes_the_mean_loss_of_a_sandwich(overrides: list[str]) -> None:
    """Each as the network that it is alone, under its own dropout."""
    one = shared_network(*overrides)
    batch = tuple(tensor[:16] for tensor in one.loader.tensors)
    context = Context(3, 7, 0.0, torch.arange(16, dtype=torch.int32), True, measure=True)
    family = one.trial.plan.family
    losses = {}
    for number, meta in enumerate(one._parts):
        point = next(p for p in one.points if shapes(one._network(p)) == shapes(meta))
        part = one._network(point)
        part.activation = meta.activation
        with torch.no_grad():
            for name, tensor in one_shot.parts(family, part):
                part.get_parameter(name).copy_(tensor)
            losses[number] = float(part.objective(batch, context).loss)
    drawn = one_shot.random.Random("3 7").sample(range(len(losses)), 2)
    largest = one._largest(batch, context)
    made = family.objective(batch, context)
    expected = (largest.loss.item() + losses[0] + sum(losses[place] for place in drawn)) / 4
    assert made.loss.item() == pytest.approx(expected, rel=1e-12)
    made.loss.backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in family.parameters())
    sizes = [sum(tensor.numel() for tensor in part.parameters()) for part in one._parts]
    assert sizes[0] == min(sizes) < one.trial.plan.num_parameters


def shapes(family: Any) -> Any:
    return [one.shape for one in family.parameters()]


def test_a_network_that_holds_all() -> None:
    assert one_shot.joined([[2], [4, 2], [3, 5, 1]]) == [4, 5, 2]
    assert one_shot.joined([3, 5]) == 5
    assert one_shot.joined(["relu", "tanh"]) == "relu"


def test_the_best_by_shared_weights_train_alone_and_the_next_ones_follow(
    studied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [SEARCH, "family.hidden=[2],[4,2],[0],[4,4],[8,4]", "optimizer.lr=0.01"]
    done = studied(*settings, "search.num_trials=2")
    assert done.states == ["COMPLETE"] * 2
    [path] = done.told.files
    rows = list(csv.DictReader(path.read_text().splitlines()))
    losses = [float(row["val/loss"]) for row in rows[:-1]]
    assert losses == sorted(losses)
    assert (rows[-1]["family.hidden"], rows[-1]["val/loss"]) == ("[0]", ""), "it cannot be built"
    for trial, row in zip(done.trials, rows, strict=False):
        assert trial.params["family.hidden"] == row["family.hidden"]
        assert trial.user_attrs["shared"]["val/loss"] == float(row["val/loss"])
        assert trial.user_attrs["num_parameters"] == float(row["num_parameters"])
        assert trial.value != float(row["val/loss"])
    found = experiments.load(done.folder / "best" / "experiment.yaml")
    assert found["family"]["hidden"] == one_shot.storage.values(done.composer.space, done.best.params)["family.hidden"]
    monkeypatch.setattr(one_shot, "_Shared", None)  # the ranking stands in the journal
    more = studied(*settings, "search.num_trials=9")
    assert more.states == ["COMPLETE"] * 4 + ["FAIL"]
    assert [trial.params["family.hidden"] for trial in more.trials] == [row["family.hidden"] for row in rows]


def test_two_objectives_rank_by_how_many_are_better(studied: Any) -> None:
    widths = "family.hidden=[2],[4,2],[4,4],[8,4],[16,16]"
    done = studied(SEARCH, widths, "search.metric=[val/loss,num_parameters]", "search.mode=[min,min]")
    shared = [trial.user_attrs["shared"] for trial in done.trials]
    assert len(shared) == 4
    for one in shared[:1]:
        assert not any(
            other["val/loss"] < one["val/loss"] and other["num_parameters"] < one["num_parameters"] for other in shared
        )
    assert done.pareto


def test_a_shared_network_that_time_cuts_trains_again(studied: Any) -> None:
    cut = studied(SEARCH, WIDTHS, "search.device_hours=1e-9")
    assert (cut.states, cut.told.files) == ([], [])
    assert studied(SEARCH, WIDTHS, "search.num_trials=1").states == ["COMPLETE"]


def test_a_shared_network_that_diverges_says_so(studied: Any) -> None:
    with pytest.raises(RunError, match=r"the network that candidates share has to train: .*lower optimizer.lr"):
        studied(SEARCH, WIDTHS, "optimizer=sgd", "optimizer.lr=1e200")


def test_candidates_of_a_large_space_are_drawn() -> None:
    widths = ",".join(f"[{a},{b}]" for a in range(1, 30) for b in range(1, 30))
    composer = Composer.of([*MLP, f"family.hidden={widths}", SEARCH, "search.sampler.num_candidates=5"])
    assert composer.search["num_trials"] == 4
    settings = OneShot(num_candidates=5, max_epochs=None, seed=1)
    drawn = one_shot._candidates(composer.space, settings)
    assert len({str(one) for one in drawn}) == 5
    assert drawn == one_shot._candidates(composer.space, settings)
    assert drawn != one_shot._candidates(composer.space, OneShot(num_candidates=5, max_epochs=None, seed=2))


UNFIT = {
    "another family": (["family=rnn", "data=japanese_vowels", "family.hidden=4,8"], "needs family=mlp or cnn, got rnn"),
    "several families": (["family=mlp,rbf", "data=wine"], "got several of family; give one, or take search=evolution"),
    "how it learns": ([*MLP, WIDTHS, "optimizer.lr=0.1,0.2"], "got several of optimizer.lr"),
    "an interval": ([*MLP, WIDTHS, "optimizer.lr=interval(0.1,0.2)"], "one-shot search needs values that can be count"),
    "no layer": ([*MLP, "family.hidden=[],[2]"], r"got family.hidden=\[\]; leave it out"),
    "stages": ([*CNN, "family.channels=[4],[4,8]"], "family.channels of 1, 2 stages"),
    "a measure": ([*MLP, WIDTHS, "search.metric=latency_ms"], "ranks by scores of validation and num_parameters"),
    "one candidate": ([*MLP, WIDTHS, "search.sampler.num_candidates=1"], "num_candidates needs two at least, got 1"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_share_weights_is_refused(name: str, home: Any) -> None:
    overrides, complaint = UNFIT[name]
    with pytest.raises(ConfigError, match=complaint):
        session.begin(session.order([SEARCH, *overrides]))
    assert not home.exists()


def test_the_figure_shows_how_ranks_agree(studied: Any, tmp_path: Any) -> None:
    left, right = torch.tensor([[3, 1, 2, 2, 5], [1, 2, 2, 4, 9]], dtype=torch.float64).numpy()
    assert rank_correlation(left, right) == pytest.approx(spearmanr(left, right).statistic)
    done = studied(SEARCH, "family.hidden=[2],[4,2],[4,4],[8,4]")
    study = one_shot.storage.optuna.create_study()
    for trial in done.trials:
        study.add_trial(trial)
    session._name_metrics(study, ["val/loss"])
    assert tmp_path / "shared_scores.png" in figures.draw(study, tmp_path)
