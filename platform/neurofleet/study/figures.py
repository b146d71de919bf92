"""Figures of a study: how the search went, what mattered, where the good trials lie.

    optimization_history, intermediate_values, param_importances, parallel_coordinate, contour, slice, pareto_front
    shared_scores

They are named as optuna's and show the same, drawn for dozens of trials: good trials are dark and on top, few very bad
ones do not squeeze the others together, importances are PED-ANOVA's (Watanabe et al., IJCAI 2023).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from neurofleet.study import parameter_figures, score_figures
from neurofleet.study.canvas import Curve, Objective, Parameter, UndrawableError

TRIALS_AT_TOP = 5  # PED-ANOVA compares these with all; fewer say too little
FEWEST_TRIALS = 4


def draw(study: optuna.Study, folder: Path) -> list[Path]:
    """The figures of a study as PNG files in `folder`; one that cannot be drawn is left out, and stderr says why."""
    import matplotlib as mpl

    trials = study.get_trials(deepcopy=False)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    # Names that come from data are no formulas, whatever dollars are in them.
    with mpl.rc_context({"text.parse_math": False}):
        for name, drawing in _drawings(study, trials):
            path = folder / f"{name}.png"
            try:
                drawing(path)
            except UndrawableError as reason:
                print(f"figure {name} is left out: {reason}", file=sys.stderr)
            except Exception as error:  # noqa: BLE001  a picture is not worth the study that it is of
                print(f"warning: figure {name} was not drawn: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                drawn.append(path)
    return drawn


def _drawings(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Iterator[tuple[str, Callable[[Path], object]]]:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and _finite(trial)]
    if not complete:
        print("the study has no figures yet: no trial has come to its end with a finite score", file=sys.stderr)
        return
    title = study.study_name
    found = _objectives(study, complete)
    numbers = np.array([trial.number for trial in complete])
    others = {
        "PRUNED": [(trial.number, _last(trial)) for trial in trials if trial.state is TrialState.PRUNED],
        "FAIL": [(trial.number, math.nan) for trial in trials if trial.state is TrialState.FAIL],
    }
    yield "optimization_history", functools.partial(score_figures.history, title, found, numbers, others)
    if len(found) == 1:
        curves = [_curve(trial) for trial in trials if trial.intermediate_values]
        yield "intermediate_values", functools.partial(score_figures.learning_curves, title, found[0], curves)
    elif len(found) == 2:
        front = {trial.number for trial in study.best_trials}
        best = np.array([trial.number in front for trial in complete])
        yield "pareto_front", functools.partial(score_figures.pareto_front, title, found, best)
    for index, objective in enumerate(found):
        pairs = [
            (trial.user_attrs["shared"][objective.label], trial.values[index])
            for trial in complete
            if objective.label in trial.user_attrs.get("shared", {})
        ]
        if pairs and objective.label != "num_parameters":  # which is the same either way
            shared, alone = np.array(pairs).T
            one = dataclasses.replace(objective, values=alone)
            yield (
                _named("shared_scores", objective, found),
                functools.partial(score_figures.shared_scores, title, one, shared),
            )
    weights = importances(study, complete)
    yield "param_importances", functools.partial(parameter_figures.importances, title, weights)
    varied = _parameters(complete, sorted(_keys(complete), key=lambda key: -weights.get(key, 0.0)))
    for objective in found:
        named = functools.partial(_named, objective=objective, found=found)
        yield named("parallel_coordinate"), functools.partial(parameter_figures.parallel, title, objective, varied)
        yield named("contour"), functools.partial(parameter_figures.contour, title, objective, varied)
        yield named("slice"), functools.partial(parameter_figures.slices, title, objective, varied, numbers)


def _named(name: str, objective: Objective, found: Sequence[Objective]) -> str:
    return f"{name}_{objective.label.replace('/', '_')}" if len(found) > 1 else name


def importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """Share of each parameter in reaching the best trials, largest first; of two objectives, the Pareto front.

    Empty where there are fewer than four trials, or all scored the same.
    """
    scores = {tuple(trial.values) for trial in complete}
    if len(complete) < FEWEST_TRIALS or len(scores) == 1:
        return {}
    _import_importance()
    quantile = min(max(0.1, TRIALS_AT_TOP / len(complete)), 0.5)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():  # of parameters that few trials have, and of scores of which many are equal
        warnings.filterwarnings("ignore", message="Some regimes for parameter|Target and region quantiles")
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _import_importance() -> None:
    """Without scikit-learn, which optuna's other evaluators would import: 2 s, as long as all pictures take."""
    absent = "sklearn" not in sys.modules
    if absent:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # the way to say that there is none
    try:
        importlib.import_module("optuna.importance")
    finally:
        if absent:
            del sys.modules["sklearn"]


def _objectives(study: optuna.Study, complete: Sequence[FrozenTrial]) -> list[Objective]:
    names = study.metric_names
    several = len(study.directions) > 1
    return [
        Objective(
            label=names[index] if names else f"objective {index + 1}" if several else "objective",
            lowest=direction is optuna.study.StudyDirection.MINIMIZE,
            values=np.array([trial.values[index] for trial in complete]),
        )
        for index, direction in enumerate(study.directions)
    ]


def _keys(complete: Sequence[FrozenTrial]) -> list[str]:
    return sorted({key for trial in complete for key in trial.params})


def _parameters(complete: Sequence[FrozenTrial], keys: Sequence[str]) -> list[Parameter]:
    """Those in which the trials differ."""
    parameters = []
    for key in keys:
        values: list[Any] = [trial.params.get(key) for trial in complete]
        distribution = next(trial.distributions[key] for trial in reversed(complete) if key in trial.params)
        present = [value for trial, value in zip(complete, values, strict=True) if key in trial.params]
        if len({str(value) for value in present}) < 2:
            continue
        choices: tuple[str, ...] = ()
        if isinstance(distribution, CategoricalDistribution):
            choices = tuple(dict.fromkeys(str(choice) for choice in (*distribution.choices, *present)))
        places = [
            math.nan if key not in trial.params else choices.index(str(value)) if choices else float(value)
            for trial, value in zip(complete, values, strict=True)
        ]
        name = _shortest(key, keys)
        parameters.append(Parameter(name, np.array(places), bool(getattr(distribution, "log", False)), choices))
    return parameters


def _shortest(key: str, keys: Sequence[str]) -> str:
    """The last words of a dotted name that tell it from the others."""
    words = key.split(".")
    endings = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    return next(
        ending
        for ending in endings
        if ending == key or not any(f".{other}".endswith(f".{ending}") for other in keys if other != key)
    )


def _curve(trial: FrozenTrial) -> Curve:
    steps, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
    score = trial.values[0] if trial.state is TrialState.COMPLETE and _finite(trial) else math.nan
    return Curve(np.array(steps, dtype=float), np.array(values), trial.state.name, score)


def _last(trial: FrozenTrial) -> float:
    """The score at which a trial was pruned."""
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else math.nan


def _finite(trial: FrozenTrial) -> bool:
    return all(math.isfinite(value) for value in trial.values)
