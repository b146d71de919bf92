"""Single: a cohort of one trial."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neurofleet.errors import DivergedError
from neurofleet.families._base import Family
from neurofleet.steps import run_chunk
from neurofleet.study.cohort import Advance, Cohort, Learnt, Row, Trial


class Single(Cohort):
    """One trial, by the very steps of a run."""

    def __init__(self, trial: Trial, wanted: frozenset[str]) -> None:
        super().__init__([trial], wanted)
        self._optimizer = trial.plan.family.make_optimizer()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def learnt(self, place: int) -> Learnt:
        kept = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters()]
        flat = [
            {name: value.detach().clone().flatten() if value.ndim else value.clone() for name, value in one.items()}
            for one in kept
        ]
        return Learnt(self.weights(place), flat)

    def _inherit(self, place: int, state: Learnt) -> None:
        self._optimizer = self._family(place).make_optimizer()
        for parameter, kept in zip(self._parameters(), state.optimizer, strict=True):
            if kept:
                self._optimizer.state[parameter] = {
                    name: torch.empty_like(parameter).copy_(value.view(parameter.shape))
                    if value.ndim
                    else value.clone()
                    for name, value in kept.items()
                }

    def _train(self) -> Iterator[Advance]:
        for chunk in self.loader:
            try:
                with self._precision():
                    result = run_chunk(self._family(0), chunk, self._optimizer)
            except DivergedError as error:
                self.trials[0].failure = str(error)
                yield Advance([], {}, 1.0)
                return
            measured = {step: {name: [value] for name, value in row.items()} for step, row in result.measured.items()}
            yield Advance([[loss] for loss in result.losses], measured, result.step_seconds)

    def _quick_scores(self) -> list[Row]:
        return [self._scores(0)]

    def _finite(self) -> list[bool]:
        return [all(bool(torch.isfinite(one).all()) for one in self._family(0).parameters())]

    def _family(self, place: int) -> Family:
        return self.trials[place].plan.family

    def _select(self, places: list[int]) -> None:
        raise AssertionError("one trial is all there is")
