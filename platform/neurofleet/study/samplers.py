"""What gives trials their values: Optuna's samplers, and those that it lacks."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.experiment.check import GRID


def sampler_of(search: Mapping[str, Any], num_known: int) -> BaseSampler:
    """A session draws by a seed of its own: with the first one's a sampler would propose the same trials again."""
    config, seed = search["sampler"], search["seed"] + num_known
    if config["_target_"] == GRID:  # the engine walks the grid itself
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: BaseSampler = experiments.build(config, "search.sampler", seed=seed)
    return sampler


class OneShot(RandomSampler):
    """Candidates of a one-shot search, which `one_shot.rank` puts in order; what waits is not drawn.

    num_candidates: so many at most
    max_epochs:     of the network whose weights they share; None: as a trial's
    """

    def __init__(self, *, num_candidates: int, max_epochs: int | None, seed: int) -> None:
        super().__init__(seed=seed)
        if num_candidates < 2:
            raise ConfigError(f"search.sampler.num_candidates needs two at least, got {num_candidates}")
        if max_epochs is not None and max_epochs < 1:
            raise ConfigError(f"search.sampler.max_epochs needs a whole number of at least 1 or null, got {max_epochs}")
        self.num_candidates, self.max_epochs, self.seed = num_candidates, max_epochs, seed


class RegularizedEvolution(BaseSampler):
    """Aging evolution (Real et al. 2019, "Regularized evolution for image classifier architecture search"): a child is
    the best of `sample_size` trials drawn from the `population_size` youngest, with one of its values changed.

    Numbers move to a neighbour: by one step, or, where they are continuous, by a normal draw of a tenth of the range.
    """

    def __init__(self, *, population_size: int, sample_size: int, seed: int) -> None:
        if not 1 <= sample_size <= population_size:
            raise ConfigError(
                "search.sampler needs 1 <= sample_size <= population_size, got "
                f"sample_size={sample_size}, population_size={population_size}"
            )
        self.population_size, self.sample_size, self.seed = population_size, sample_size, seed
        self._first = RandomSampler(seed=seed)
        self._space = IntersectionSearchSpace()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.calculate(study)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not search_space or len(ended) < self.population_size:
            return {}
        draws = random.Random(f"{self.seed} {trial.number}")
        youngest = sorted(ended, key=lambda one: one.number)[-self.population_size :]
        parent = _best(study, draws.sample(youngest, self.sample_size))
        child = {name: parent.params[name] for name in search_space}
        name = draws.choice(sorted(search_space))
        child[name] = _changed(child[name], search_space[name], draws)
        return child

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._first.sample_independent(study, trial, param_name, param_distribution)


def _best(study: optuna.Study, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The best of one objective; of several one that none of the others beats in all."""
    signs = [1 if direction == optuna.study.StudyDirection.MINIMIZE else -1 for direction in study.directions]
    scores = {one.number: [value * sign for value, sign in zip(one.values, signs, strict=True)] for one in trials}

    def num_better(one: FrozenTrial) -> int:
        return sum(
            all(theirs <= ours for theirs, ours in zip(other, scores[one.number], strict=True))
            for number, other in scores.items()
            if number != one.number
        )

    return min(trials, key=lambda one: (num_better(one), scores[one.number]))


def _changed(value: Any, distribution: BaseDistribution, draws: random.Random) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != value or type(choice) is not type(value)]
        return draws.choice(others) if others else value
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        if distribution.log:
            return min(max(value * (high / low) ** draws.gauss(0, 0.1), low), high)
        return min(max(value + (high - low) * draws.gauss(0, 0.1), low), high)
    if isinstance(distribution, IntDistribution) and distribution.log:
        neighbours = [max(low, value // 2), min(high, value * 2)]
    else:
        low_, step = Decimal(str(low)), Decimal(str(distribution.step or 1))
        place = round((value - low) / float(step))  # sums of steps would drift off the range
        neighbours = [type(value)(low_ + (place + move) * step) for move in (-1, 1)]
    inside = [one for one in neighbours if low <= one <= high and one != value]
    return draws.choice(inside) if inside else value
