"""Stack: K trials of one architecture that train as one model, the horizontally fused training array of Wang et al.
2021 ("HFTA", MLSys).

The objective of one trial runs under `torch.func.vmap` over the weights, seeds and settings of all; one backward pass
serves them, a `tape` repeats what both come to, and `optimizers.StackedOptimizer` moves the weights.  A trial learns
what it would learn alone: data order and randomness follow from its seed, and rows of a stack do not touch.

K trials, P numbers of one trial's parameters, B rows of a batch, N rows of the training data.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from neurofleet.families._base import Family, Objective
from neurofleet.families._layers import fingerprints
from neurofleet.loaders import ChunkLoader
from neurofleet.steps import Batch, Context
from neurofleet.study.cohort import Advance, Cohort, Learnt, Row, Trial
from neurofleet.study.optimizers import StackedOptimizer, ordered
from neurofleet.study.settings import NotStackableError, Owner, differing, in_place, owners
from neurofleet.study.tape import NotTapedError, Tape, record

BEFORE_TAPE = 12  # steps, as many as recording one costs
Metrics = dict[str, Tensor]
Learning = tuple[Tensor, list[Tensor | None], Metrics, Metrics]
"""losses [K], the gradient [K, *shape] of each parameter or None, metrics [K, ...], and new values of buffers"""


class Objectives(nn.Module):
    """The objective as a forward, for `functional_call`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, batch: Batch, context: Context) -> Objective:
        return self.family.objective(batch, context)


class Stack(Cohort):
    """Trials that `stacking.signature` finds alike.

    compiled: whether torch.compile makes kernels of their steps, which takes it seconds for each number of trials

    Raises:
        NotStackableError: they cannot train as one model; nothing has been trained.
    """

    def __init__(self, trials: Sequence[Trial], wanted: frozenset[str], *, compiled: bool = False) -> None:
        self._compiled = compiled
        order = ordered([trial.plan.experiment["optimizer"] for trial in trials])
        super().__init__([trials[place] for place in order], wanted)
        assert isinstance(self.loader, ChunkLoader)
        self._rows = self.loader
        learning = [[name for name, one in family.named_parameters() if one.requires_grad] for family in self._families]
        if any(names != learning[0] for names in learning):
            raise NotStackableError("their networks have other parameters")
        self._names = learning[0]
        states = [dict(_tensors(family)) for family in self._families]
        if any(one.shape != states[0][name].shape for state in states for name, one in state.items()):
            raise NotStackableError("their networks have other sizes")
        rows = [torch.cat([state[name].detach().reshape(-1) for name in self._names]) for state in states]
        self._shapes = [states[0][name].shape for name in self._names]
        self._others = {
            name: torch.stack([state[name].detach() for state in states])
            for name in states[0]
            if name not in self._names
        }
        self._lay_out(torch.stack(rows))
        self._optimizer = StackedOptimizer(
            [trial.plan.experiment["optimizer"] for trial in self.trials],
            self._weights,
            [shape.numel() for shape in self._shapes],
        )
        self._settle()

    @property
    def _families(self) -> list[Family]:
        return [trial.plan.family for trial in self.trials]

    def _lay_out(self, weights: Tensor) -> None:
        """weights [K, P]; each parameter [K, *shape] is a view of its columns."""
        self._weights = weights
        sizes = [shape.numel() for shape in self._shapes]
        self._leaves = {
            name: part.view(len(weights), *shape).requires_grad_()
            for name, part, shape in zip(self._names, weights.split(sizes, dim=1), self._shapes, strict=True)
        }

    def _settle(self) -> None:
        """What follows from which trials there are; the first one's family stands for all, with their settings."""
        self._tapes: dict[Any, Tape] | None = {}
        self._times: Counter[Any] = Counter()  # that a kind of step has come
        self._network = Objectives(self._families[0])
        self._kept = dict(owners(self._families[0]))
        self.settings = differing(self._families)
        seeds = [trial.plan.experiment["seed"] for trial in self.trials]
        self._have_one_seed = len(set(seeds)) == 1
        self._seeds = torch.tensor(seeds, dtype=torch.int32, device=self.device)
        self._loaders = [self._rows.with_seed(seed) for seed in dict.fromkeys(seeds)]
        self._loader_of = [list(dict.fromkeys(seeds)).index(seed) for seed in seeds]
        self._orders = -1, torch.empty(0)
        self._schedules = [trial.plan.family.recipe.schedule for trial in self.trials]
        clips = [trial.plan.config.gradient_clip_val for trial in self.trials]
        self._clips = None
        if any(clip is not None for clip in clips):
            self._clips = torch.tensor([clip or torch.inf for clip in clips], dtype=torch.float64, device=self.device)

    # Training.

    def _train(self) -> Iterator[Advance]:
        loader = self.loader
        end = min((loader.step // loader.steps_per_round + 1) * loader.steps_per_round, loader.num_steps)
        while loader.step < end:
            yield self._advance(loader.step, min(loader.step + loader.chunk_steps, end))

    def _advance(self, start: int, stop: int) -> Advance:
        recipe = self.trials[0].plan.family.recipe
        losses, measured = [], {}
        begin = time.perf_counter()
        factors = self._factors(start, stop)
        for step, (batch, rows) in enumerate(self._batches(start, stop), start):
            measure = step % recipe.log_every_n_steps == 0
            context = Context(recipe.seed, step, step / recipe.num_steps, rows, True, measure)
            loss_K, gradients, metrics, buffers = self.gradients(batch, context)
            self._optimizer.step(self._clipped(gradients), factors[step - start])
            for name, value in buffers.items():
                self._others[name].copy_(value.detach())
            losses.append(loss_K.detach())
            if measure:
                measured[step] = {"loss": loss_K.detach()} | {name: _row_means(one) for name, one in metrics.items()}
        table = torch.stack(losses).double().tolist()
        seconds = (time.perf_counter() - begin) / len(losses)
        return Advance(table, {step: _lists(row) for step, row in measured.items()}, seconds)

    def gradients(self, batch: Batch, context: Context) -> Learning:
        """What the trials learn from a batch of each.

        Where a kind of step has come so often that it repays, its operations are recorded, unless the objective looks
        at values: at how far training is, say, to choose a phase.
        """
        kind = context.measure, *(one.shape for one in batch)
        self._times[kind] += 1
        if self._tapes is None or self._times[kind] <= BEFORE_TAPE:
            return self._learning(batch, context)
        return self._taped(kind, batch, context)

    def _taped(self, kind: Any, batch: Batch, context: Context) -> Learning:
        assert self._tapes is not None
        step = torch.full((), cast("int", context.step), dtype=torch.int32, device=self.device)
        progress = torch.full((), context.progress, dtype=torch.float64, device=self.device)
        inputs = batch, context.rows, step, progress
        try:
            if kind not in self._tapes:
                function = functools.partial(self._learning_at, context)
                made, self._tapes[kind] = record(function, *inputs, compiled=self._compiled)
            else:
                made = self._tapes[kind](*inputs)
        except NotTapedError:
            self._tapes = None
            made = self._learning(batch, context)
        return cast("Learning", made)

    def _learning_at(self, context: Context, batch: Batch, rows: Tensor, step: Tensor, progress: Any) -> Learning:
        return self._learning(batch, dataclasses.replace(context, rows=rows, step=step, progress=progress))

    def _learning(self, batch: Batch, context: Context) -> Learning:
        loss_K, metrics, buffers = self._objectives(batch, context, shared=self._have_one_seed)
        return loss_K, self._gradients(loss_K), metrics, buffers

    def _objectives(self, batch: Batch, context: Context, *, shared: bool) -> tuple[Tensor, Metrics, Metrics]:
        """loss [K], metrics [K, ...] and buffers [K, ...] of all trials; `shared` says whether the batch is."""

        def one(leaves: Metrics, others: Metrics, settings: Mapping[Owner, Tensor], seed: Tensor, batch: Batch) -> Any:
            own = context.training and not self._have_one_seed
            state = {f"family.{name}": tensor for name, tensor in (leaves | others).items()}
            with in_place(self._kept, settings):
                where = dataclasses.replace(context, seed=seed) if own else context
                objective = torch.func.functional_call(self._network, state, (batch, where))
            return objective.loss, dict(objective.metrics), dict(objective.buffers)

        over = torch.func.vmap(one, in_dims=(0, 0, 0, 0, None if shared else 0))
        return over(self._leaves, self._others, self.settings, self._seeds, batch)

    def _gradients(self, loss_K: Tensor) -> list[Tensor | None]:
        """[K, *shape] of each parameter that took part."""
        return list(torch.autograd.grad(loss_K.sum(), list(self._leaves.values()), allow_unused=True))

    def probe(self, batch: Batch, context: Context) -> tuple[Tensor, list[Tensor | None]]:
        """Losses [K] and gradients [K, *shape] of a batch that all trials see; nothing is learnt."""
        loss_K, _, _ = self._objectives(batch, context, shared=True)
        return loss_K.detach(), self._gradients(loss_K)

    def _batches(self, start: int, stop: int) -> Iterator[tuple[Batch, Tensor]]:
        """Batches with the rows' places; each trial has its own rows unless all have one seed."""
        if self._have_one_seed:
            chunk = self._loaders[0].chunk(start, stop)
            yield from zip(chunk.batches, chunk.rows, strict=True)
            return
        for step in range(start, stop):
            epoch, place = divmod(step, self.loader.steps_per_epoch)
            first = place * self._rows.batch_size
            if self._orders[0] != epoch:
                orders = torch.stack([loader.order(epoch) for loader in self._loaders])
                self._orders = epoch, orders[self._loader_of]
            chosen_KB = self._orders[1][:, first : first + self._rows.batch_size]
            rows = torch.arange(chosen_KB.shape[1], dtype=torch.int32, device=self.device)
            yield tuple(tensor[chosen_KB] for tensor in self.loader.tensors), rows

    def _factors(self, start: int, stop: int) -> Tensor:
        """What the schedules make of the learning rates: float64 [steps, K]."""
        num_steps = self.trials[0].plan.family.recipe.num_steps
        table = [[schedule(step / num_steps) for schedule in self._schedules] for step in range(start, stop)]
        return torch.tensor(table, dtype=torch.float64, device=self.device)

    def _clipped(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """As `torch.nn.utils.clip_grad_norm_` of each trial."""
        if self._clips is None:
            return gradients
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients if one is not None])
        norm_K = torch.linalg.vector_norm(norms, dim=0)
        factor_K = (self._clips / (norm_K + 1e-6)).clamp(max=1.0).to(norm_K.dtype)
        return [None if one is None else one * factor_K.view(-1, *[1] * (one.ndim - 1)) for one in gradients]

    # Validation.

    @torch.no_grad()
    def _quick_scores(self) -> list[Row]:
        names = self.trials[0].plan.family.quick_scores
        totals: Metrics = {}
        num_rows = 0
        for batch in self.val:
            context = Context(0, 0, 1.0, fingerprints(batch[0]), False, measure=True)
            loss_K, metrics, _ = self._objectives(batch, context, shared=True)
            for name, value in {"loss": loss_K, **metrics}.items():
                if name in names:
                    totals[name] = totals.get(name, 0.0) + _row_means(value) * len(batch[0])
            num_rows += len(batch[0])
        columns = _lists({f"val/{name}": total / num_rows for name, total in totals.items()})
        return [{name: column[place] for name, column in columns.items()} for place in range(len(self.trials))]

    def _finite(self) -> list[bool]:
        return torch.isfinite(self._weights).all(dim=1).tolist()

    @torch.no_grad()
    def _family(self, place: int) -> Family:
        family = self._families[place]
        stacked = self._leaves | self._others
        for name, tensor in _tensors(family):
            tensor.copy_(stacked[name][place])
        return family

    def learnt(self, place: int) -> Learnt:
        return Learnt(self.weights(place), self._optimizer.row_state(place))

    @torch.no_grad()
    def _inherit(self, place: int, state: Learnt) -> None:
        stacked = self._leaves | self._others
        for name, tensor in _tensors(self._families[place]):
            stacked[name][place] = tensor
        self._optimizer.set_row(place, self.trials[place].plan.experiment["optimizer"], state.optimizer)
        self._settle()

    def _select(self, places: list[int]) -> None:
        self._others = {name: tensor[places] for name, tensor in self._others.items()}
        self._lay_out(self._weights.detach()[places])
        self._optimizer.select(places, [trial.plan.experiment["optimizer"] for trial in self.trials], self._weights)
        self._settle()


def _tensors(family: Family) -> Iterator[tuple[str, Tensor]]:
    yield from family.named_parameters()
    yield from family.named_buffers()


def _row_means(values: Tensor) -> Tensor:
    """[K, ...] -> float64 [K]"""
    return values.detach().double().reshape(len(values), -1).mean(dim=1)


def _lists(columns: Metrics) -> dict[str, list[float]]:
    return {name: column.double().tolist() for name, column in columns.items()}
