"""The pictures of a study say what its trials did, whatever kinds of trials and parameters there are."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from neurofleet.study import parameter_figures, score_figures
from neurofleet.study.canvas import Curve, Objective, Parameter, UndrawableError
from neurofleet.study.figures import draw, importances

ONE = ["optimization_history", "intermediate_values", "param_importances", "parallel_coordinate", "contour", "slice"]
SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    "family.dropout": optuna.distributions.FloatDistribution(0, 0.6),
    "family.activation": optuna.distributions.CategoricalDistribution(["relu", "gelu $x^$", "tanh"]),
    "family.depth": optuna.distributions.IntDistribution(1, 4),
}


def made(num_trials: int, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    """Accuracy follows from the learning rate alone; every eighth trial was pruned, one failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="mlp $ digits ^", directions=directions)
    random = np.random.default_rng(0)
    for number in range(num_trials):
        params = {
            "optimizer.lr": float(10 ** random.uniform(-4, -1)),
            "family.dropout": float(random.uniform(0, 0.6)),
            "family.activation": ("relu", "gelu $x^$", "tanh")[number % 3],
            "family.depth": 1 + number % 4,
        }
        score = math.exp(-((math.log10(params["optimizer.lr"]) + 2) ** 2))
        curve = {step: score * step / 50 for step in range(10, 60, 10)} if len(directions) == 1 else {}
        state = TrialState.FAIL if number == 5 else TrialState.COMPLETE
        if number % 8 == 7 and curve:
            state, curve = TrialState.PRUNED, {step: curve[step] for step in (10, 20)}
        values = [score, 1000.0 * params["family.depth"]][: len(directions)] if state is TrialState.COMPLETE else None
        study.add_trial(
            create_trial(state=state, values=values, params=params, distributions=SPACE, intermediate_values=curve)
        )
    return study


def test_every_picture_of_many_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(made(40), tmp_path / "figures")
    assert [path.stem for path in drawn] == ONE
    assert sorted(tmp_path.glob("figures/*")) == sorted(drawn)
    for path in drawn:
        height, width, _ = matplotlib.image.imread(path).shape
        assert 300 < height < 1500
        assert 700 < width < 2000
    assert capsys.readouterr().err == ""


def test_two_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(made(20, ("maximize", "minimize")), tmp_path)
    kinds = [f"{kind}_objective {number}" for number in (1, 2) for kind in ("parallel_coordinate", "contour", "slice")]
    assert [path.stem for path in drawn] == ["optimization_history", "pareto_front", "param_importances", *kinds]
    assert capsys.readouterr().err == ""


def test_one_trial_has_no_more_than_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [path.stem for path in draw(made(1), tmp_path)] == ["optimization_history"]
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ONE[1:]
    assert all(" is left out: " in line for line in told)


def test_no_trial_came_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(value=math.inf))
    assert draw(study, tmp_path) == []
    assert capsys.readouterr().err == "the study has no figures yet: no trial has come to its end with a finite score\n"


def test_a_constant_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study()
    for lr in (0.1, 0.2, 0.3, 0.4, 0.5):
        distribution = optuna.distributions.FloatDistribution(0, 1)
        study.add_trial(create_trial(value=1.0, params={"lr": lr}, distributions={"lr": distribution}))
    assert [path.stem for path in draw(study, tmp_path)] == ["optimization_history", "slice"]
    assert "importances need four complete trials whose scores differ" in capsys.readouterr().err


def test_what_breaks_one_picture_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(parameter_figures, "slices", broken)
    assert [path.stem for path in draw(made(10), tmp_path)] == ONE[:-1]
    assert capsys.readouterr().err == "warning: figure slice was not drawn: RuntimeError: no ink\n"


def test_conditional_and_constant_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = optuna.distributions.FloatDistribution(0, 1)
    study = optuna.create_study()
    for number in range(12):
        params = {"a.lr": number / 12, "b.lr": (number * 5 % 12) / 12, "same": 0.5}
        params |= {"only": number / 12} if number % 2 else {}
        study.add_trial(create_trial(value=number**1.5, params=params, distributions=dict.fromkeys(params, unit)))
    drawn = [path.stem for path in draw(study, tmp_path)]
    assert drawn == [name for name in ONE if name != "intermediate_values"]
    assert capsys.readouterr().err == "figure intermediate_values is left out: no trial reported two scores\n"


def test_what_decides_is_found() -> None:
    study = made(64)
    complete = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    weights = importances(study, complete)
    assert next(iter(weights)) == "optimizer.lr"
    assert weights["optimizer.lr"] > 0.5
    assert sum(weights.values()) == pytest.approx(1)
    assert importances(study, complete[:3]) == {}


# what the pictures show


@pytest.mark.parametrize("lowest", [True, False])
def test_far_worse_trials_do_not_squeeze_the_others(lowest: bool) -> None:
    sign = 1 if lowest else -1
    objective = Objective("loss", lowest, sign * np.array([1.0, 1.1, 1.2, 1.3, 1000.0]))
    low, high = objective.fence(objective.values)
    assert sorted([abs(low), abs(high)]) == pytest.approx([1.0, 1.9])
    assert objective.upwards().tolist() == [4, 3, 2, 1, 0]


def test_axes_of_parameters() -> None:
    log = Parameter("lr", np.array([1e-4, 1e-2, 1e-1, math.nan]), log=True, choices=())
    np.testing.assert_allclose(log.unit(log.places)[:3], [0, 2 / 3, 1])
    places, labels = log.ticks()
    assert labels == ["0.0001", "0.001", "0.01", "0.1"]
    np.testing.assert_allclose(places, [0, 1 / 3, 2 / 3, 1], atol=1e-12)
    assert Parameter("lr", np.array([0.001, 0.01]), log=True, choices=()).ticks()[1] == [
        "0.001",
        "0.002",
        "0.005",
        "0.01",
    ]
    assert Parameter("depth", np.array([1.0, 3.0]), log=False, choices=()).ticks() == ([0, 0.5, 1], ["1", "2", "3"])
    choices = Parameter("kind", np.array([0.0, 1.0]), log=False, choices=("relu", "a very long name"))
    assert choices.ticks() == ([0.25, 0.75], ["relu", "a very long "])


def test_curves_without_two_scores(tmp_path: Path) -> None:
    objective = Objective("loss", True, np.array([1.0, 2.0]))
    curve = Curve(np.array([1.0]), np.array([1.0]), "COMPLETE", 1.0)
    with pytest.raises(UndrawableError, match="no trial reported two scores"):
        score_figures.learning_curves("study", objective, [curve], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []
