"""Loaders: what a run trains on as chunks of steps, and what it is held against.

What is in a batch, and in what order, is a function of (seed, epoch, step) alone.  Several workers each take a
contiguous part of every global batch.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neurofleet import counter
from neurofleet.steps import Batch, Chunk

# A chunk aims at this much time: long enough that a hook (about 0.2 ms) costs nothing, short enough that a progress
# bar moves and a signal is heard.
CHUNK_SECONDS = 0.25
MAX_CHUNK_STEPS = 512
ORDERED_ROWS = 1 << 15  # of as many epochs as fit, the order is made at once
_ORDER_SITE = -1  # the sites of a network count up from zero


class Loader(ABC):
    """Iterates over one round (`epochs_per_round` epochs) of chunks; a Lightning epoch is one round.

    steps_per_epoch: optimizer steps
    cut_every:       a chunk ends at multiples of this many steps (where checkpoints fall), or None
    step:            how many steps have been trained; whoever trains keeps it up to date
    tensors:         the training rows as far as they are known before training; `Family.start` gets them
    """

    tensors: Batch = ()

    def __init__(
        self,
        *,
        steps_per_epoch: int,
        seed: int,
        max_epochs: int,
        epochs_per_round: int,
        cut_every: int | None,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.device = device
        self.cut_every = cut_every
        self.steps_per_epoch = steps_per_epoch
        self.steps_per_round = steps_per_epoch * epochs_per_round
        self.num_steps = steps_per_epoch * max_epochs
        self.chunk_steps = 1
        self.step = 0
        self._rows: dict[tuple[int, int], Tensor] = {}

    def __iter__(self) -> Iterator[Chunk]:
        step = self.step  # Lightning fetches ahead, and may start an iterator that it never finishes
        end = min((step // self.steps_per_round + 1) * self.steps_per_round, self.num_steps)
        while step < end:
            stop = min(step + self.chunk_steps, end)
            if self.cut_every:
                stop = min(stop, (step // self.cut_every + 1) * self.cut_every)
            yield self.chunk(step, stop)
            step = stop

    def pace(self, step_seconds: float) -> None:
        """Fit the next chunks to `CHUNK_SECONDS`; where a chunk is cut never changes a result."""
        wanted = int(CHUNK_SECONDS / max(step_seconds, 1e-9))
        self.chunk_steps = max(1, min(wanted, 2 * self.chunk_steps, MAX_CHUNK_STEPS))

    @abstractmethod
    def chunk(self, start: int, stop: int) -> Chunk:
        """The steps from `start` to `stop`; whatever has to wait until they are trained waits in `Chunk.batches`."""

    # What a loader remembers beside the number of steps; one whose batches are functions of it has nothing to add.

    def scores(self) -> dict[str, float]:
        """What the loader measured in the round that ends, by names as in `train/return`; called once a round."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and plain JSON: with them `restore` goes on as if nothing had happened."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raises CheckpointError where that cannot be."""
        assert not tensors, f"{type(self).__name__} keeps nothing, got {sorted(tensors)}"

    # The part of a global batch that is this worker's.

    def _share(self, size: int) -> tuple[int, int, float]:
        """The first row of the part, the one after its last, and the weight of the part."""
        first, last = size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size
        if first == last:  # more workers than rows: run on one row with weight zero, so that all take part
            return 0, 1, 0.0
        return first, last, (last - first) / size

    def _global_rows(self, first: int, last: int) -> Tensor:
        if (first, last) not in self._rows:
            self._rows[first, last] = torch.arange(first, last, dtype=torch.int32, device=self.device)
        return self._rows[first, last]


class ChunkLoader(Loader):
    """Rows in memory, all of them once an epoch, in an order of its own.

    tensors:     of length N each, on the device that trains
    batch_size:  rows in a global batch; the last of an epoch may be smaller and is never dropped
    """

    def __init__(self, tensors: Batch, *, batch_size: int, **settings: Any) -> None:
        self.num_rows = len(tensors[0])
        self.batch_size = min(batch_size, self.num_rows)
        steps_per_epoch = math.ceil(self.num_rows / self.batch_size)
        super().__init__(steps_per_epoch=steps_per_epoch, device=tensors[0].device, **settings)
        self.tensors = tensors
        self._orders: tuple[int, Tensor] = (0, torch.empty(0))  # an epoch, and the orders of the rows from it on

    def chunk(self, start: int, stop: int) -> Chunk:
        indices, sizes, rows, weights = [], [], [], []
        for step in range(start, stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            begin = batch * self.batch_size
            first, last, weight = self._share(min(self.batch_size, self.num_rows - begin))
            indices.append(self.order(epoch)[begin + first : begin + last])
            sizes.append(last - first)
            rows.append(self._global_rows(first, last))
            weights.append(weight)
        gathered = torch.cat(indices)
        columns = [tensor.index_select(0, gathered).split(sizes) for tensor in self.tensors]
        return Chunk(start, list(zip(*columns, strict=True)), rows, weights)

    def with_seed(self, seed: int) -> ChunkLoader:
        """The same rows in another seed's order."""
        other = copy.copy(self)
        other.seed, other._orders = seed, (0, torch.empty(0))
        return other

    def order(self, epoch: int) -> Tensor:
        """The order of the rows in an epoch; made for many epochs at once where an epoch is short."""
        first, orders = self._orders
        if not first <= epoch < first + len(orders):
            epochs = torch.arange(epoch, epoch + max(ORDERED_ROWS // self.num_rows, 1), dtype=torch.int32)
            keys = counter.fold(self.seed, _ORDER_SITE, epochs)
            assert isinstance(keys, Tensor)
            first, orders = epoch, counter.permutations(keys, self.num_rows).to(self.device)
            self._orders = first, orders
        return orders[epoch - first]


class HeldOut:
    """Batches of held-out rows in order; each worker takes a contiguous part, or all if workers outnumber rows."""

    def __init__(self, tensors: Batch, *, batch_size: int, rank: int, world_size: int) -> None:
        num_rows = len(tensors[0])
        if num_rows < world_size:
            rank, world_size = 0, 1
        first, last = num_rows * rank // world_size, num_rows * (rank + 1) // world_size
        self.tensors = tuple(tensor[first:last] for tensor in tensors)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.tensors[0]) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return zip(*(tensor.split(self.batch_size) for tensor in self.tensors), strict=True)
