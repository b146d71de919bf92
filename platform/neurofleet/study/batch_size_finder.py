"""Batch sizes: how many rows a second training takes at sizes that double, until they or memory run out.

Lightning's `scale_batch_size` looks for the largest batch that memory holds.  On a CPU memory refuses late, and rows a
second stop growing long before, as on a GPU: so these are measured, and the smallest batch near their best is
suggested.  Of several workers each takes its part of the global batch, as in a run, and the exchange of gradients
counts; `data.batch_size` is of all of them.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from neurofleet.errors import ConfigError
from neurofleet.experiment import Experiment
from neurofleet.loaders import ChunkLoader
from neurofleet.run import Plan
from neurofleet.steps import Context
from neurofleet.study.finder import Bench, Finder, Finding, Measured, Points, say
from neurofleet.study.finder_figures import batch_sizes
from neurofleet.supply import RowSupply

SHARE_OF_MEMORY = 0.5  # of what is free, for the next batch
NUM_TIMES = 5  # a size is timed in so many pieces, the fastest of which counts
PATIENCE = 3  # sizes in a row that are no faster end the search
MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizeFinder(Finder):
    """min_batch_size, max_batch_size: of the global batch; max_batch_size None for all rows
    seconds:   of training that is timed for each size
    tolerance: how far below the best the suggestion's rows a second may be, as a share
    """

    name: ClassVar[str] = "batch_size"

    min_batch_size: int
    max_batch_size: int | None
    seconds: float
    tolerance: float

    def __post_init__(self) -> None:
        if self.min_batch_size < 1:
            raise ConfigError(f"finder.min_batch_size needs at least 1, got {self.min_batch_size}")
        if self.max_batch_size is not None and self.max_batch_size < self.min_batch_size:
            raise ConfigError(
                f"finder.max_batch_size needs at least min_batch_size, {self.min_batch_size}, got {self.max_batch_size}"
            )
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"finder.seconds needs more than 0 and at most 600, got {self.seconds}")
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"finder.tolerance needs 0 <= tolerance < 1, got {self.tolerance}")

    def check(self, planned: Plan) -> None:
        if not isinstance(planned.supply, RowSupply):
            raise ConfigError(
                f"finder=batch_size needs a dataset of rows, got {type(planned.family).__name__}, whose rows are of "
                "its own making; acting for them takes time too, and depends on data.num_environments"
            )

    def measure(self, experiment: Experiment) -> Measured:
        optimizer = experiment["optimizer"]
        if "lr" in optimizer:  # weights stand still: no size of a batch makes them explode
            optimizer = optimizer | {"lr": 0.0}
        bench = Bench(experiment | {"optimizer": optimizer})
        rows, stopped, kept = list[dict[str, Any]](), "", 0.0
        for size in self._sizes(bench.loader.num_rows):
            loader = bench.with_batches(size)
            fits = not rows or kept * size / rows[-1]["batch_size"] <= _free(bench)
            tried = _try_out(bench, loader) if fits else None
            if _any(bench, tried is None):
                stopped = f"memory does not hold batches of {size}"
                break
            kept = tried or 0.0
            rows.append({"batch_size": size, **self._time(bench, loader), "memory_mib": _memory(bench, kept) / MIB})
            say(_row(rows[-1]))
            best = max(range(len(rows)), key=lambda index: rows[index]["rows_per_second"])
            if len(rows) - best > PATIENCE:
                stopped = f"none of the next {PATIENCE} sizes beyond {rows[best]['batch_size']} was faster"
                break
        return {
            "rows": rows,
            "stopped": stopped,
            "num_workers": bench.loader.world_size,
            "num_rows": bench.loader.num_rows,
            "batch_size": bench.loader.batch_size,
        }

    def _sizes(self, num_rows: int) -> list[int]:
        """Doubling, and the largest at last."""
        largest = min(num_rows, self.max_batch_size or num_rows)
        sizes = [min(self.min_batch_size, largest)]
        while sizes[-1] < largest:
            sizes.append(min(2 * sizes[-1], largest))
        return sizes

    def _time(self, bench: Bench, loader: ChunkLoader) -> dict[str, float]:
        """The best of several times for some of the first steps of a run, those in which rows are gathered included."""
        longest = bench.family.recipe.num_steps
        taken = [_seconds(bench, loader, 1), _seconds(bench, loader, 1)]
        num_steps = max(1, min(int(self.seconds / NUM_TIMES / taken[-1]), longest, 512))
        if num_steps > loader.steps_per_epoch:
            num_steps -= num_steps % loader.steps_per_epoch  # the last batch of an epoch may be a small one
        taken = []
        while len(taken) < 2 or (sum(taken) < self.seconds and len(taken) < 2 * NUM_TIMES):
            taken.append(_seconds(bench, loader, num_steps))
        epochs, rest = divmod(num_steps, loader.steps_per_epoch)
        num_rows = epochs * loader.num_rows + rest * loader.batch_size
        return {"step_ms": 1000 * min(taken) / num_steps, "rows_per_second": num_rows / min(taken)}

    def conclude(self, measured: Measured) -> Finding:
        rows = measured["rows"]
        if not rows:
            return Finding(None, f"no suggestion: {measured['stopped']}; lower finder.min_batch_size")
        chosen, best = self.suggestion(measured), max(row["rows_per_second"] for row in rows)
        share = next(row["rows_per_second"] for row in rows if row["batch_size"] == chosen) / best
        workers, why = measured["num_workers"], f"; {measured['stopped']}" if measured["stopped"] else ""
        among = f", divided among {workers} workers," if workers > 1 else ""
        steps = [-(-measured["num_rows"] // size) for size in (chosen, measured["batch_size"])]
        return Finding(
            f"data.batch_size={chosen}",
            f"batches of {chosen} rows{among} train at {share:.0%} of the best rows a second{why}\n"
            f"speed is not learning: an epoch has {steps[0]} steps of {chosen} rows, and {steps[1]} of "
            f"{measured['batch_size']}; find the learning rate anew (neurofleet tune finder=lr)",
        )

    def suggestion(self, measured: Measured) -> int:
        rows = measured["rows"]
        enough = (1 - self.tolerance) * max(row["rows_per_second"] for row in rows)
        return min(int(row["batch_size"]) for row in rows if row["rows_per_second"] >= enough)

    def points(self, measured: Measured) -> Points:
        return [
            (row["batch_size"], 0.0, {f"finder/{name}": value for name, value in row.items()})
            for row in measured["rows"]
        ]

    def draw(self, measured: Measured, title: str, path: Path) -> None:
        columns = {name: [row[name] for row in measured["rows"]] for name in measured["rows"][0]}
        batch_sizes(
            columns["batch_size"],
            columns["rows_per_second"],
            columns["memory_mib"],
            self.suggestion(measured),
            self.tolerance,
            f"{title}: batch sizes" + f", {measured['num_workers']} workers" * (measured["num_workers"] > 1),
            path,
        )


def _row(row: dict[str, Any]) -> str:
    size, rate, step = row["batch_size"], row["rows_per_second"], row["step_ms"]
    return f"batch size {size:>7}   {step:>9.2f} ms a step   {rate:>10,.0f} rows/s   {row['memory_mib']:>9.1f} MiB"


def _seconds(bench: Bench, loader: ChunkLoader, num_steps: int) -> float:
    """How long steps take, the same on all workers; what they give is read, so the device is done with them."""
    begin = time.perf_counter()
    bench.take(loader.chunk(0, num_steps))
    return _largest(bench, time.perf_counter() - begin)


def _largest(bench: Bench, value: float) -> float:
    """Of all workers'."""
    if not dist.is_initialized():
        return value
    values = torch.tensor([value], dtype=torch.float64, device=bench.device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return float(values)


def _any(bench: Bench, flag: bool) -> bool:
    return _largest(bench, float(flag)) > 0


def _free(bench: Bench) -> float:
    """Bytes that a batch may take on a CPU; a GPU says itself when there are none left."""
    if bench.device.type == "cuda":
        return float("inf")
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1
    return psutil.virtual_memory().available * SHARE_OF_MEMORY / sharing


def _try_out(bench: Bench, loader: ChunkLoader) -> float | None:
    """Bytes that a batch, and what both passes keep of it, take on a CPU; or None if there are not as many."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        chunk = loader.chunk(0, 1)
        batch = next(iter(chunk.batches))
        context = Context(bench.plan.experiment["seed"], 0, 0.0, chunk.rows[0], True, measure=False)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            bench.try_out(batch, context)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in f"{error}":
            bench.family.zero_grad()
            torch.cuda.empty_cache()
            return None
        raise
    # What is saved of weights and of the batch is theirs.
    for tensor in (*bench.family.parameters(), *batch):
        kept[tensor.untyped_storage().data_ptr()] = 0
    return float(sum(kept.values()) + _bytes(batch))


def _memory(bench: Bench, kept: float) -> float:
    """Bytes that training took: on a GPU the peak, on a CPU what a step keeps beside weights, gradients and the
    optimizer's state."""
    if bench.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(bench.device))
    weights = [one for one in bench.family.parameters() if one.requires_grad]
    state = [one for each in bench.optimizer.state.values() for one in each.values() if isinstance(one, Tensor)]
    return kept + _bytes((*weights, *weights, *state))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
