"""A study in this process, without MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from neurofleet import experiment as experiments
from neurofleet.experiment import Composer
from neurofleet.study import one_shot, session, storage
from neurofleet.study.display import Display
from neurofleet.study.engine import Engine, objectives
from neurofleet.study.lane import Lane
from neurofleet.study.samplers import sampler_of
from neurofleet.study.schedulers import Scheduler

TINY = ["family=mlp", "family.hidden=[4]", "data=wine", "data.batch_size=124", "trainer.max_epochs=2"]
TINY += ["trainer.num_threads=1", "trainer.accelerator=cpu", "trainer.precision=64-true"]


class Told:
    """What would be sent to MLflow."""

    def __init__(self) -> None:
        self.trials: list[dict[str, Any]] = []
        self.rows: list[Any] = []
        self.files: list[Path] = []

    def log_trial(self, record: dict[str, Any]) -> None:
        self.trials.append(record)

    def log_artifact(self, path: Path) -> None:
        self.files.append(path)

    def log_many(self, rows: list[Any]) -> None:
        self.rows += rows


@dataclasses.dataclass
class Studied:
    """How a study stands."""

    trials: list[FrozenTrial]
    best: FrozenTrial | None
    pareto: list[FrozenTrial]
    folder: Path
    told: Told
    composer: Composer

    @property
    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def studied(home: Path) -> Callable[..., Studied]:
    """One session of a study by its overrides; `wrap` may put something around the lane."""

    def go(
        *overrides: str, name: str = "tries", wrap: Callable[[Lane], Any] = lambda lane: lane, failed_only: bool = False
    ) -> Studied:
        fuse = [] if any(one.startswith("search.fuse=") for one in overrides) else ["search.fuse=stack"]
        composer = Composer.of([*TINY, *fuse, *overrides])
        planned = session.begin(session.Order(name, composer, [], None, failed_only))
        scheduler: Scheduler = experiments.build(composer.scheduler, "scheduler")
        aims = objectives(composer.search)
        lane = Lane(**session.lane_settings(composer.search, scheduler))
        directions = [StudyDirection.MINIMIZE if sign == 1 else StudyDirection.MAXIMIZE for sign in aims.values()]
        told: Any = Told()
        with storage.opened(name, directions) as opened:
            opened.study.sampler = sampler_of(composer.search, len(opened.study.trials))
            if failed_only:
                composer.search["num_trials"] = 0
                opened.retry_failed()
            display = Display(name, composer.search["num_trials"], 1, aims)
            engine = Engine(composer, opened, wrap(lane), scheduler, told, display, planned)
            one_shot.rank(composer, aims, opened, told, display, engine.is_time_up)
            engine.run()
            trials = opened.study.get_trials()
            pareto = opened.study.best_trials if len(aims) > 1 else []
            return Studied(trials, opened.best, pareto, opened.folder, told, composer)

    return go
