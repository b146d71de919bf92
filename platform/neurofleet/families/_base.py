"""Family: a network plus its learning rule, and the rule is one pure function.

    objective(batch, context) -> Objective(loss, metrics, buffers)

`objective` reads parameters and buffers, draws randomness from `context` alone, and does nothing else; gradient descent
on its loss IS the family's learning rule.  From it this base class makes a LightningModule: a stock `Trainer` with a
stock DataLoader takes one step per batch, `neurofleet.run` hands over chunks of many (see `neurofleet.steps`).

Beside it a family may say where training starts (`start`: centres from k-means, say), and what there is to look at when
it is over (`exhibits`).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._layers import fingerprints
from neurofleet.schedule import Schedule
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Chunk, ChunkResult, Context, run_chunk


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a learning rule says of one batch: a scalar `loss`, and `metrics` if the context measures.

    A metric is a tensor (of any dtype) whose mean is logged: a scalar, or a value a row, whose mean is then taken for
    many steps at once.

    `buffers` are the new values of registered buffers (by their names), written after the optimizer's step: running
    averages of weights, chains of samples, target networks.  They may depend on parameters, buffers and the context's
    seed, step and progress, but never on the rows of the batch: so they are equal on all workers, and need no exchange.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    buffers: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a family is optimised; all of it comes from the experiment.

    optimizer:         parameters -> torch optimizer
    schedule:          progress in [0, 1] -> factor on the learning rate
    seed:              of everything random in training
    num_steps:         optimizer steps in all, which progress is measured against
    log_every_n_steps: how often metrics beside the loss are measured
    gradient_clip_val: largest norm of the gradient, or None
    """

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    schedule: Schedule
    seed: int
    num_steps: int
    log_every_n_steps: int
    gradient_clip_val: float | None


_NUM_ROWS = ""  # no metric has this name
STARTING_ROWS = 1 << 14  # as many of a stock DataLoader's rows as `start` gets to see; in a run it sees all


class Family(pl.LightningModule, ABC):
    """Abstract: a subclass builds its network from the DataSpec and its config, and gives `objective`.

    `forward(inputs)` is what the network says at serving time; `neurofleet.data.decode` puts it in the user's terms.
    """

    kinds: ClassVar[frozenset[str]]  # the DataSpec kinds and tasks that the family accepts
    tasks: ClassVar[frozenset[str]]
    shardable: ClassVar[bool] = True  # whether its layers may be split over workers, each whole only while it is called
    output_names: tuple[str, ...] | None = None  # of the columns of `forward`, where they do not follow from the task

    def __init__(self, *, spec: DataSpec) -> None:
        super().__init__()
        self.accept(spec)
        self.spec = spec
        self._recipe: Recipe | None = None
        self.last_chunk: ChunkResult | None = None
        self.settled = False  # whether inputs come as `settle` has left them
        self._totals: dict[str, dict[str, Tensor]] = {}  # of held-out rows, by stage
        self._new_buffers: Mapping[str, Tensor] = {}  # of the step that Lightning's own optimization is taking

    @classmethod
    def accept(cls, spec: DataSpec) -> None:
        """Raise MismatchError unless the family can learn from such a dataset."""
        for field, allowed in (("kind", cls.kinds), ("task", cls.tasks)):
            if getattr(spec, field) not in allowed:
                raise MismatchError(
                    f"{cls.__name__} needs data of {field} {' or '.join(sorted(allowed))}, "
                    f"got {spec.name}, which is {getattr(spec, field)}"
                )

    @abstractmethod
    def objective(self, batch: Batch, context: Context) -> Objective:
        """The learning rule. `batch` is (inputs [batch, *spec.shape], targets); the loss is a mean over its rows."""

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """What the network makes of inputs [B, *spec.shape] before it answers: [B, F], of each row by itself; with a
        context of training under the family's own dropout.  Raises ConfigError where another task could use nothing."""
        name = type(self).__name__
        raise ConfigError(f"{name} has nothing to transfer, no features; take a base whose family learns from rows")

    @property
    def heads(self) -> tuple[str, ...]:
        """Dotted names of modules, parameters and buffers that `features` never reads, and works without."""
        return ()

    def begin(self, seed: int) -> None:
        """Fetch the weights that the config names, and what else training is to begin with; once, before it."""

    def start(self, batch: Batch) -> None:
        """Set the weights that training starts from, given the training rows; without it they are the constructor's.

        It is a function of rows and weights alone (draw by `neurofleet.counter`), so that all workers start alike.
        A resumed run calls it too, before it puts its own weights back: so what a family keeps of the rows outside of
        its weights (a siamese network's references) is there again.
        """

    @property
    def settled_key(self) -> str | None:
        """None, or that `settle` may be called once for all; equal where it gives the same for the same rows."""
        return None

    def settle_down(self) -> None:
        """From now on inputs come as `settle` leaves them."""
        self.settled = True

    def settle(self, inputs: Tensor) -> Tensor:
        """What of the network's work on inputs [B, *spec.shape] never changes in training, done."""
        return inputs

    def released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of the state dict as a new network of the same config takes them."""
        return dict(state)

    def start_together(self, batch: Batch) -> None:
        """`start`, and the first worker's weights for all: others saw other rows, or summed in another order."""
        self.start(batch)
        if dist.is_initialized():
            for tensor in (*self.parameters(), *self.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """What to look at after training, given test rows: for each picture (a module of `neurofleet.figures`) the
        arrays that its function takes by name, in the user's units."""
        return {}

    def update_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Write what an `Objective` says of buffers."""
        with torch.no_grad():
            for name, value in buffers.items():
                self.get_buffer(name).copy_(value)

    @property
    def score_names(self) -> list[str]:
        """What held-out data is measured by: `loss` is logged as `val/loss` and `test/loss`."""
        return ["loss"]

    @property
    def quick_scores(self) -> frozenset[str]:
        """Those of its scores that are plain means of what `objective` says of held-out rows."""
        return frozenset(self.score_names if type(self)._evaluate is Family._evaluate else ())

    # How Lightning sees a family.

    @property
    def recipe(self) -> Recipe:
        if self._recipe is None:
            raise ConfigError(
                f"{type(self).__name__} needs a recipe (optimizer, schedule, seed) to train; "
                "build it by neurofleet.experiment.build_family, or set family.recipe"
            )
        return self._recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @property
    def raw_optimizer(self) -> torch.optim.Optimizer:
        """The one optimizer, without Lightning's wrapper, whose bookkeeping costs more than a small network's step."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A new one, whose learning rates are to be multiplied by the schedule's factor."""
        optimizer = self.recipe.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if not self.automatic_optimization:
            return optimizer
        schedule = LambdaLR(optimizer, lambda step: self.recipe.schedule(min(step / self.recipe.num_steps, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch | Chunk, batch_idx: int) -> Tensor | None:
        if isinstance(batch, Chunk):
            self.last_chunk = run_chunk(self, batch, self.raw_optimizer)
            # Lightning counts what goes through its optimizer wrapper; these steps did not.
            progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            progress.total.ready += len(batch.batches)
            progress.total.completed += len(batch.batches)
            return None
        step = self.trainer.global_step
        objective = self.objective(batch, self._context(batch, step, training=True))
        for name, value in {"loss": objective.loss, **objective.metrics}.items():
            mean = value.to(objective.loss.dtype).mean()
            self.log(f"train/{name}", mean, batch_size=len(batch[0]), sync_dist=dist.is_initialized())
        self._new_buffers = objective.buffers  # the backward pass may still need the old ones
        return objective.loss

    def on_train_start(self) -> None:
        """Under a stock Trainer; `neurofleet.run` calls `start` itself, before the weights are shared out."""
        if self.automatic_optimization and self.trainer.global_step == 0:
            batches, num_rows = [], 0
            for batch in self.trainer.train_dataloader or ():
                batches.append([tensor.to(self.device) for tensor in batch])
                num_rows += len(batch[0])
                if num_rows >= STARTING_ROWS:
                    break
            self.start_together(tuple(torch.cat(column) for column in zip(*batches, strict=True)))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.update_buffers(self._new_buffers)
        self._new_buffers = {}

    def _context(self, batch: Batch, step: int, *, training: bool) -> Context:
        """The context of a batch that is not a chunk's: a stock DataLoader's, or held-out data."""
        size = len(batch[0])
        if not training:  # what is drawn for a row follows from the row, whichever worker and batch it is in
            return Context(0, 0, 1.0, fingerprints(batch[0]), training, measure=True)
        rows = torch.arange(size, dtype=torch.int32, device=batch[0].device) + size * self.global_rank
        return Context(self.recipe.seed, step, min(step / self.recipe.num_steps, 1.0), rows, training, measure=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", self._scores_of("val"))

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", self._scores_of("test"))

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of a whole pass over held-out batches by their `score_names`, without a Trainer."""
        with torch.no_grad():
            for batch in batches:
                self._evaluate(batch, "val")
            return {name: float(value) for name, value in self._scores_of("val").items()}

    def _evaluate(self, batch: Batch, stage: str) -> None:
        """Hold the batch against the learning rule; a subclass with scores of its own replaces this."""
        objective = self.objective(batch, self._context(batch, 0, training=False))
        self._tally(stage, {"loss": objective.loss, **objective.metrics}, len(batch[0]))

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        """What a whole pass over held-out data amounts to."""
        return self._means(stage)

    def _tally(self, stage: str, means: Mapping[str, Tensor], num_rows: int) -> None:
        """Remember the means over a batch (or its rows' own values), weighted by its rows."""
        totals = self._totals.setdefault(stage, {})
        for name, mean in means.items():
            totals[name] = totals.get(name, 0.0) + mean.detach().double().mean() * num_rows
        totals[_NUM_ROWS] = totals.get(_NUM_ROWS, 0.0) + torch.tensor(num_rows, dtype=torch.float64, device=self.device)

    def _means(self, stage: str) -> dict[str, Tensor]:
        """The means over all rows of all workers.  (Lightning's own rounds the workers' average number of rows.)"""
        totals = self._totals.pop(stage)
        sums = torch.stack(list(totals.values()))
        if dist.is_initialized():
            dist.all_reduce(sums)
        values = dict(zip(totals, sums, strict=True))
        num_rows = values.pop(_NUM_ROWS)
        return {name: total / num_rows for name, total in values.items()}

    def _log_scores(self, stage: str, scores: Mapping[str, Tensor]) -> None:
        for name, value in scores.items():
            self.log(
                f"{stage}/{name}", value, sync_dist=dist.is_initialized()
            )  # equal on all; Lightning likes to hear it
