"""Chunks of steps: every row once an epoch, whoever holds it and wherever chunks are cut."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurofleet.errors import DivergedError
from neurofleet.families._base import Objective, Recipe
from neurofleet.loaders import MAX_CHUNK_STEPS, ChunkLoader, HeldOut
from neurofleet.schedule import Linear
from neurofleet.steps import Batch, Chunk, Context, run_chunk


def make_loader(num_rows: int, batch_size: int, **settings: Any) -> ChunkLoader:
    """Rows whose content is their number, twice."""
    numbers = torch.arange(num_rows)
    chosen = {
        "seed": 3,
        "max_epochs": 3,
        "epochs_per_round": 1,
        "cut_every": None,
        "rank": 0,
        "world_size": 1,
    } | settings
    return ChunkLoader((numbers, numbers.float().unsqueeze(1)), batch_size=batch_size, **chosen)


def train(loader: ChunkLoader) -> list[Chunk]:
    """All chunks to the end, as a run takes them: round after round, counting the steps."""
    chunks = []
    while loader.step < loader.num_steps:
        for chunk in loader:
            chunks.append(chunk)
            loader.step += len(chunk.batches)
    return chunks


def batches(chunks: list[Chunk]) -> list[list[int]]:
    return [batch[0].tolist() for chunk in chunks for batch in chunk.batches]


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 3), (12, 4), (7, 7), (5, 100), (9, 1), (1, 1)])
@pytest.mark.parametrize("chunk_steps", [1, 2, 5, 100])
def test_every_row_comes_once_an_epoch(num_rows: int, batch_size: int, chunk_steps: int) -> None:
    loader = make_loader(num_rows, batch_size)
    loader.chunk_steps = chunk_steps
    chunks = train(loader)
    per_epoch = math.ceil(num_rows / batch_size)
    assert loader.steps_per_epoch == per_epoch
    assert loader.num_steps == loader.step == 3 * per_epoch
    assert [step for c in chunks for step in range(c.first_step, c.first_step + len(c.batches))] == [
        *range(3 * per_epoch)
    ]
    found = batches(chunks)
    epochs = [list(itertools.chain(*found[e * per_epoch : (e + 1) * per_epoch])) for e in range(3)]
    assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)
    if num_rows > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 3, "each epoch has an order of its own"
    sizes = [min(batch_size, num_rows - start) for start in range(0, num_rows, batch_size)]
    assert [len(batch) for batch in found] == sizes * 3
    for chunk in chunks:
        assert chunk.weights == [1.0] * len(chunk.batches)
        for (numbers, column), rows in zip(chunk.batches, chunk.rows, strict=True):
            assert torch.equal(numbers.float().unsqueeze(1), column), "all columns are of the same rows"
            assert rows.dtype is torch.int32
            assert rows.tolist() == list(range(len(numbers)))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, again, other = (batches(train(make_loader(50, 8, seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_where_chunks_are_cut_changes_no_batch() -> None:
    whole = batches(train(make_loader(50, 8)))
    for cut_every, rounds, chunk_steps in itertools.product([None, 1, 4, 5, 1000], [1, 2, 3, 7], [1, 3, 64]):
        loader = make_loader(50, 8, cut_every=cut_every, epochs_per_round=rounds)
        loader.chunk_steps = chunk_steps
        chunks = train(loader)
        assert batches(chunks) == whole
        ends = {chunk.first_step + len(chunk.batches) for chunk in chunks}
        assert ends >= set(range(7 * rounds, 21, 7 * rounds)) | {21}, "a round ends with a chunk"
        assert cut_every is None or ends >= set(range(cut_every, 21, cut_every))
        assert max(len(chunk.batches) for chunk in chunks) <= chunk_steps


def test_the_pace_changes_chunks_alone() -> None:
    whole = batches(train(make_loader(200, 2)))
    loader = make_loader(200, 2)
    seconds = itertools.cycle([1e-9, 1e-4, 0.0, 0.01, 0.1, 10.0, 1e-5])
    chunks, lengths = [], []
    while loader.step < loader.num_steps:
        for chunk in loader:
            chunks.append(chunk)
            lengths.append(len(chunk.batches))
            loader.step += len(chunk.batches)
            loader.pace(next(seconds))
    assert batches(chunks) == whole
    assert len(set(lengths)) > 3
    for _ in range(20):
        loader.pace(1e-6)
    assert loader.chunk_steps == MAX_CHUNK_STEPS
    loader.pace(0.05)
    assert loader.chunk_steps == 5
    loader.pace(1e-6)
    assert loader.chunk_steps == 10, "it grows by doubling"
    loader.pace(100.0)
    assert loader.chunk_steps == 1


def test_an_iterator_that_was_left_loses_no_step() -> None:
    whole = batches(train(make_loader(50, 8)))
    loader = make_loader(50, 8)
    loader.chunk_steps = 2
    chunks = []
    while loader.step < loader.num_steps:
        iterator = iter(loader)
        chunk = next(iterator)
        next(iterator, None)  # fetched ahead, and never trained on
        chunks.append(chunk)
        loader.step += len(chunk.batches)
    assert batches(chunks) == whole
    assert list(loader) == [], "after the last step there is nothing"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 3), (13, 4), (12, 6), (5, 100), (1, 1)])
def test_workers_part_each_global_batch(world_size: int, num_rows: int, batch_size: int) -> None:
    whole = batches(train(make_loader(num_rows, batch_size)))
    workers = [train(make_loader(num_rows, batch_size, rank=r, world_size=world_size)) for r in range(world_size)]
    held = [
        [part for chunk in worker for part in zip(chunk.batches, chunk.rows, chunk.weights, strict=True)]
        for worker in workers
    ]
    assert {len(parts) for parts in held} == {len(whole)}
    for step, expected in enumerate(whole):
        parts = [worker[step] for worker in held]
        assert all(len(batch[0]) > 0 for batch, _, _ in parts), "everybody takes part in every all-reduce"
        real = [(batch[0].tolist(), rows.tolist(), weight) for batch, rows, weight in parts if weight > 0]
        assert [number for numbers, _, _ in real for number in numbers] == expected
        assert [row for _, rows, _ in real for row in rows] == list(range(len(expected)))
        assert sum(weight for _, _, weight in real) == pytest.approx(1, abs=1e-15)
        assert all(weight == len(numbers) / len(expected) for numbers, _, weight in real)
        assert max(len(numbers) for numbers, _, _ in real) - min(len(numbers) for numbers, _, _ in real) <= 1


def test_a_tail_of_one_row_gives_a_worker_a_row_of_weight_zero() -> None:
    chunks = [train(make_loader(9, 4, rank=rank, world_size=2, max_epochs=1)) for rank in (0, 1)]
    assert [sorted(chunk.weights[-1] for chunk in worker[-1:]) for worker in chunks] in ([[0.0], [1.0]], [[1.0], [0.0]])
    tails = [worker[-1].batches[-1][0].tolist() for worker in chunks]
    assert tails[0] == tails[1]
    assert len(tails[0]) == 1


# Held-out data.


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 3), (12, 4), (5, 512), (3, 1)])
def test_held_out_rows_are_met_once_in_order(world_size: int, num_rows: int, batch_size: int) -> None:
    tensors = (torch.arange(num_rows), torch.arange(num_rows) * 2)
    found: list[int] = []
    for rank in range(world_size):
        loader = HeldOut(tensors, batch_size=batch_size, rank=rank, world_size=world_size)
        parts = list(loader)
        assert len(parts) == len(loader)
        assert all(len(inputs) <= batch_size for inputs, _ in parts)
        assert all(torch.equal(inputs * 2, targets) for inputs, targets in parts)
        found += [number for inputs, _ in parts for number in inputs.tolist()]
    assert found == list(range(num_rows))


def test_with_fewer_rows_than_workers_everybody_takes_all() -> None:
    for rank in range(3):
        (batch,) = HeldOut((torch.arange(2),), batch_size=8, rank=rank, world_size=3)
        assert batch[0].tolist() == [0, 1]


# Training on chunks.


class Line(nn.Module):
    """The least that run_chunk asks of a family: the mean of (w x - y)^2."""

    def __init__(self, lr: float, clip: float | None = None, num_steps: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        self.raw_optimizer = torch.optim.SGD([self.weight], lr=lr)
        for group in self.raw_optimizer.param_groups:
            group["initial_lr"] = lr
        self.recipe = Recipe(
            optimizer=lambda _: self.raw_optimizer,
            schedule=Linear(warmup=0.0, final=0.0),
            seed=1,
            num_steps=num_steps,
            log_every_n_steps=2,
            gradient_clip_val=clip,
        )
        self.contexts: list[Context] = []

    def objective(self, batch: Batch, context: Context) -> Objective:
        self.contexts.append(context)
        loss = (self.weight * batch[0] - batch[1]).square().mean()
        return Objective(loss, {"error": loss.sqrt()} if context.measure else {})


def line_chunk(targets: list[float], first_step: int = 0) -> Chunk:
    parts = [(torch.ones(2, dtype=torch.float64), torch.full((2,), target, dtype=torch.float64)) for target in targets]
    rows = torch.arange(2, dtype=torch.int32)
    return Chunk(first_step, parts, [rows] * len(parts), [1.0] * len(parts))


def by_hand(targets: list[float], lr: float, clip: float | None, num_steps: int) -> tuple[list[float], float]:
    weight, losses = 0.0, []
    for step, target in enumerate(targets):
        losses.append((weight - target) ** 2)
        gradient = 2 * (weight - target)
        if clip is not None and abs(gradient) > clip:
            gradient *= clip / abs(gradient)
        weight -= lr * (1 - step / num_steps) * gradient
    return losses, weight


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_chunk_is_its_steps_one_after_another(clip: float | None) -> None:
    targets = [1.0, 3.0, -2.0, 0.5, 0.25, 8.0]
    losses, weight = by_hand(targets, 0.1, clip, 6)
    family: Any = Line(0.1, clip)
    first, second = (
        run_chunk(family, chunk, family.raw_optimizer)
        for chunk in (line_chunk(targets[:4]), line_chunk(targets[4:], 4))
    )
    assert first.losses + second.losses == pytest.approx(losses, rel=1e-6)
    assert family.weight.item() == pytest.approx(weight, rel=1e-6)
    assert family.frozen.item() == 1
    measured = first.measured | second.measured
    assert list(measured) == [0, 2, 4]
    for step, metrics in measured.items():
        assert metrics == pytest.approx({"loss": losses[step], "error": losses[step] ** 0.5}, rel=1e-6)
    assert [(c.step, c.progress, c.training, c.measure) for c in family.contexts] == [
        (step, step / 6, True, step % 2 == 0) for step in range(6)
    ]
    assert (first.first_step, second.first_step) == (0, 4)
    assert first.step_seconds > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_step(bad: float) -> None:
    family: Any = Line(0.1, num_steps=100)
    with pytest.raises(
        DivergedError, match=r"the loss must stay finite, got (nan|inf) at step 43; lower optimizer\.lr"
    ) as info:
        run_chunk(family, line_chunk([1.0, 2.0, 3.0, bad, 1.0, 1.0], first_step=40), family.raw_optimizer)
    assert info.value.step == 43
    assert info.value.exit_code == 1


def test_a_rate_that_is_too_high_diverges_at_the_step_that_says_so() -> None:
    family: Any = Line(1e200, num_steps=10**9)
    weight, step = 0.0, 0
    while math.isfinite((weight - 1) * (weight - 1)):
        weight -= 1e200 * 2 * (weight - 1)
        step += 1
    with pytest.raises(DivergedError) as info:
        run_chunk(family, line_chunk([1.0] * 10), family.raw_optimizer)
    assert info.value.step == step


def test_a_chunk_holds_views_of_one_gather() -> None:
    """Nothing in the loop may copy a batch."""
    loader = make_loader(64, 8)
    loader.chunk_steps = 8
    (chunk,) = itertools.islice(loader, 1)
    storages: set[int] = {batch[1].untyped_storage().data_ptr() for batch in chunk.batches}
    assert len(storages) == 1


def test_the_key_of_a_site_follows_seed_step_and_site() -> None:
    def context(seed: int, step: int) -> Any:
        return SimpleNamespace(seed=seed, step=step)

    keys: list[int | Tensor] = [
        Context.key(context(seed, step), site) for seed, step, site in itertools.product(range(5), range(20), range(5))
    ]
    assert len(set(keys)) == 500
