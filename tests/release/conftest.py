"""A model registry of the tests' own, and a run of one epoch to fill it with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from neurofleet import experiment as experiments
from neurofleet import paths, release, run
from neurofleet.launch.record import ARTIFACTS
from neurofleet.tracking import Tracker

DIGEST = "ab" * 16


class Trained(NamedTuple):
    run_id: str
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROFLEET_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Trained:
    """A run as `neurofleet train` leaves it, in MLflow and on disk."""
    tags = {"data": "wine", "family": "mlp", "data.digest": DIGEST}
    tracker = Tracker.start(experiment="wine", run_name="mlp-wine-0", tags=tags, params={})
    experiment = experiments.compose(["family=mlp", "data=wine", "family.hidden=[8]", "trainer.max_epochs=1"])
    folder = run.run(experiment, tracker=tracker, folder=paths.run(tracker.run_id)).folder
    for name in ARTIFACTS:
        tracker.log_artifact(folder / name)
    tracker.finish()
    return Trained(tracker.run_id, folder)


@pytest.fixture(scope="module")
def registered(trained: Trained) -> Trained:
    """Registers wine-mlp, version 1."""
    assert release.register(trained.run_id, trained.folder, "wine-mlp", {"data.digest": DIGEST}) == 1
    return trained
