"""Elastic workers: a run that loses some goes on from its last checkpoint with as many as there is room for.

Batches, their order and all that is random are functions of the step, and gradients are weighted by rows, so the number
of workers changes nothing but the order of sums.  Every attempt is a group of its own; between two the size is chosen
anew, so a run grows again when it is cut.

Ray Train v2 has a policy for this (`ElasticScalingPolicy`), which is not used: it counts what nodes have, not what is
free on them, and sees them once in 20 s, so that after a loss it asks for the dead node's workers again and waits for
these.  Its failure policy cannot tell a lost node from the user's error, and retries both.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurofleet.errors import LostWorkerError, ResourceError, WorkerError
from neurofleet.launch import workers
from neurofleet.launch.connection import bundle, environment, room
from neurofleet.launch.size import bounds, choose, places

MOST_LOSSES = 3
"""that many times may the same number of workers be lost before the next checkpoint; the last ends the run"""
LONGEST_WAIT = 600.0  # seconds for the smallest number of workers, as long as Ray waits for a fixed one
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_SECONDS = "60"  # whoever took a place that was counted keeps it: count again
EVERY_SECONDS = 0.5  # the cluster is asked

Note = Callable[[int, int], None]
"""told the number of workers, and the step of the checkpoint they go on from, before they start"""


def fit(
    launcher: Mapping[str, Any],
    function: Callable[[dict[str, Any]], Any],
    task: dict[str, Any],
    folder: Path,
    note: Note,
) -> Any:
    """As `workers.fit`, however many workers are lost; `task["resume"]` says whether a run goes on.

    Raises:
        LostWorkerError: workers were lost again and again at the same place, or there is no room for the fewest left.
    """
    smallest, largest = bounds(launcher)
    losses: Counter[tuple[int, int]] = Counter()
    with (
        environment({START_TIMEOUT: os.environ.get(START_TIMEOUT, START_SECONDS)}),
        workers.ready(launcher, f"{smallest} to {largest} workers") as local,
    ):
        while True:
            size, step = _size(launcher, smallest, largest), _step(folder)
            how = f"goes on with {size} of {largest} workers from step {step}"
            print(how if task["resume"] else f"starts with {size} of {largest} workers", flush=True)
            note(size, step)
            try:
                return workers.attempt({**launcher, "num_workers": size}, function, task, folder, local=local)
            except (WorkerError, ResourceError) as error:
                place = size, _step(folder)
                losses[place] += 1
                if not _is_lost(error) or losses[place] == MOST_LOSSES:
                    raise
                print(_loss(error), flush=True)
            task = task | {"resume": (folder / "experiment.yaml").is_file()}


def _size(launcher: Mapping[str, Any], smallest: int, largest: int) -> int:
    """As many workers as there is room for; waits for the fewest."""
    share, began, said = bundle(launcher), time.monotonic(), False
    while True:
        nodes, waited = room(), time.monotonic() - began
        free = places(share, (node.free for node in nodes))
        size = choose(smallest, largest, free=free, whole=places(share, (node.whole for node in nodes)), waited=waited)
        if size is not None:
            return size
        if waited > LONGEST_WAIT:
            raise LostWorkerError(
                f"launcher.num_workers={list(launcher['num_workers'])} needs room for {smallest} worker(s), got room "
                f"for {free} on {len(nodes)} node(s) after {waited:.0f} s; add nodes, or lower the minimum"
            )
        if not said and waited > 1:
            said = True
            print(f"room for {free} worker(s) now, waiting for more ...", flush=True)
        time.sleep(EVERY_SECONDS)


def _is_lost(error: Exception) -> bool:
    """Whether the group went without fault of its own: a worker or its node died, or somebody else took its place."""
    return isinstance(error, LostWorkerError | ResourceError) or workers.PARTNER_LOST.search(str(error)) is not None


def _loss(error: Exception) -> str:
    partner = workers.PARTNER_LOST.search(str(error))  # whose own words are a page of gloo's or NCCL's
    return f"a worker is gone ({partner.group().lower()})" if partner else str(error).splitlines()[0]


def _step(folder: Path) -> int:
    """Of the newest checkpoint; 0 where there is none.  Torch is not imported to find out."""
    try:
        index = json.loads((folder / "checkpoints" / "index.json").read_text())
    except FileNotFoundError:
        return 0
    return int(index[-1]["step"]) if index else 0
