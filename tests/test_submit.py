"""From what is typed to an order in the ledger."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from neurofleet import paths, submit
from neurofleet.cluster import jobs
from neurofleet.cluster.job import Job
from neurofleet.cluster.ledger import Ledger
from neurofleet.errors import ConfigError, ResourceError
from neurofleet.launch import record

RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A platform is up, as far as can be seen from here; the experiments whose runs were opened."""
    experiments: list[dict[str, Any]] = []

    def scheduled(experiment: dict[str, Any], tags: Any = None) -> str:
        time.sleep(0.05)
        experiments.append(experiment)
        return RUN

    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(jobs, "address", lambda: "")
    monkeypatch.setattr(record, "scheduled", scheduled)
    monkeypatch.setattr(submit.tracking, "warm_up", lambda: None)
    monkeypatch.setattr(submit.catalog, "need", lambda data: None)
    return experiments


def test_each_attempt_of_a_training_is_the_same_command_of_its_run(opened: list[dict[str, Any]]) -> None:
    order = submit.submit("train", ["family=mlp", "data=digits", "trainer.num_threads=1"]).order
    assert order.command[-2:] == ["train", f"resume={RUN}"]
    assert (order.run_id, order.what, order.arguments[0]) == (RUN, "mlp on digits", "family=mlp")
    assert (order.cpus, order.own_cpus) == (1.0, 1.0)
    assert order.project == str(paths.project())
    assert "NEUROFLEET_HOME" in order.environment


def test_workers_take_the_room_and_the_driver_none(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit.launch, "check", lambda experiment: None)
    workers = ["launcher=ray", "launcher.num_workers=3", "launcher.cpus_per_worker=2"]
    order = submit.submit("train", ["family=mlp", "data=digits", *workers]).order
    assert (order.cpus, order.own_cpus, order.gpus, order.own_gpus) == (6.0, 0.0, 0.0, 0.0)
    workers[1] = "launcher.num_workers=[2,8]"  # it starts where the fewest fit
    assert submit.submit("train", ["family=mlp", "data=digits", *workers]).order.cpus == 4.0


def test_what_can_never_run_is_refused_before_anything_is_written(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    too_many = ["launcher=ray", "launcher.num_workers=100000"]
    with pytest.raises(ResourceError, match=r"num_workers=100000 .* more than the cluster has"):
        submit.submit("train", ["family=mlp", "data=digits", *too_many])
    with pytest.raises(ConfigError, match="no pipeline 'trian' to submit; did you mean train"):
        submit.submit("trian", [])
    assert opened == []
    assert not paths.home().exists()


def test_twenty_that_submit_under_one_name_at_once_open_one_run(opened: list[dict[str, Any]]) -> None:
    found: list[Job] = []
    arguments = ["family=mlp", "data=digits"]
    order = jobs.Order("train", arguments, ["true"], "/")

    def send() -> None:
        with jobs.naming("nightly") as taken:
            if taken is None:
                record.scheduled({})
            found.append(taken or jobs.submit(order, key="nightly"))

    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len({job.id for job in found}), len(opened)) == (20, 1, 1)
    assert submit.submit("train", arguments, key="nightly").id == found[0].id
    with pytest.raises(ConfigError, match="a name stands for one job"):
        submit.submit("train", ["family=cnn"], key="nightly")
    with Ledger() as book:
        assert len(book.jobs()) == 1


def test_a_script_of_the_project_runs_as_it_is(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    order = submit.submit("mine", ["--fast"]).order
    assert order.command == [sys.executable, str(tmp_path / "pipelines" / "mine.py"), "--fast"]
    assert (order.run_id, opened) == (None, [])
