"""Supply: where the batches of a run come from: the rows of a dataset, or what an agent makes of an environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neurofleet.data import EnvironmentDataModule, ParquetDataModule
from neurofleet.data.acting import ActingLoader, acting_loader
from neurofleet.data.episodes import HeldOutEpisodes, film, frame, greedy_history
from neurofleet.data.lanes import Lanes
from neurofleet.families._agent import Agent
from neurofleet.families._base import Family
from neurofleet.loaders import ChunkLoader, HeldOut, Loader
from neurofleet.steps import Batch

EVALUATION_ROWS = 512  # in a batch of held-out rows, at least
SETTLED_ROWS, SETTLED_TEXTS = 64, 512  # at a time: images may need much memory, texts are sorted by length
EXHIBITED_ROWS = 2048  # as many test rows as a family gets to see for its figures

Tensors = Mapping[str, Tensor]
Exhibits = Mapping[str, Tensors]
Report = Callable[[str, int, int], None]  # of a stage, rows done, rows in all


class Supply(ABC):
    """`steps_per_epoch` counts optimizer steps; `validates` says whether there is something to validate on."""

    steps_per_epoch: int
    validates: bool

    @abstractmethod
    def loader(self, device: torch.device, **settings: Any) -> Loader:
        """What to train on; `settings` are those of `Loader`."""

    @abstractmethod
    def held_out(
        self, stage: str, device: torch.device, *, rank: int, world_size: int
    ) -> HeldOut | HeldOutEpisodes | None:
        """What `val` or `test` is measured on, if there is anything."""

    @abstractmethod
    def leave(self, loader: Loader, history: Sequence[dict[str, float]], *, exhibit: bool) -> tuple[Tensors, Exhibits]:
        """What the trained family says of test data, and what there is to look at if `exhibit`."""

    def settle(self, device: torch.device, report: Report, *, rank: int, world_size: int) -> None:  # noqa: B027
        """Do once what never changes in training (see `Family.settle`), each worker its share."""

    def close(self) -> None:  # noqa: B027  most have nothing to do
        """Give back what training and evaluation held open."""


class RowSupply(Supply):
    """The rows of a dataset; read and checked as this is built."""

    def __init__(self, data: ParquetDataModule, family: Family, dtype: torch.dtype) -> None:
        self.data, self.family, self.dtype = data, family, dtype
        rows = {stage: len(data.rows(stage).targets) for stage in ("train", "val", "test")}
        self.validates = rows["val"] > 0
        self.steps_per_epoch = -(-rows["train"] // data.batch_size)
        if family.settled_key is not None:
            family.settle_down()

    def tensors(self, stage: str, device: torch.device) -> Batch:
        inputs, targets = self.raw(stage, device)
        if self.family.settled:
            key = f"{self.family.settled_key} {stage}"
            if key not in self.data.settled:
                self._settle(stage, inputs)
            inputs = self.data.settled[key].to(device)
        return inputs, targets

    def raw(self, stage: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are, whatever the family makes of them."""
        return self.data.rows_as(stage, device, self.dtype)

    def settle(self, device: torch.device, report: Report, *, rank: int, world_size: int) -> None:
        for stage in ("train", "val", "test") if self.family.settled else ():
            if f"{self.family.settled_key} {stage}" not in self.data.settled:
                self._settle(stage, self.raw(stage, device)[0], report, rank, world_size)

    @torch.no_grad()
    def _settle(
        self, stage: str, inputs: Tensor, report: Report = lambda *_: None, rank: int = 0, world_size: int = 1
    ) -> None:
        was_training = self.family.training
        self.family.eval()
        parts = {}
        size = SETTLED_TEXTS if self.data.spec.kind == "text" else SETTLED_ROWS
        # Cut as one worker cuts them: the same rows beside one another give the same bits.
        for begin in range(rank * size, len(inputs), world_size * size):
            parts[begin] = self.family.settle(inputs[begin : begin + size])
            report(stage, min(begin + world_size * size, len(inputs)), len(inputs))
        if world_size > 1:
            parts = _together(parts, world_size)
        if not parts:  # not every network takes no rows at all
            parts[0] = self.family.settle(self.raw("train", inputs.device)[0][:1])[:0]
        self.data.settled[f"{self.family.settled_key} {stage}"] = torch.cat([parts[begin] for begin in sorted(parts)])
        self.family.train(was_training)

    def loader(self, device: torch.device, **settings: Any) -> Loader:
        return ChunkLoader(self.tensors("train", device), batch_size=self.data.batch_size, **settings)

    def held_out(self, stage: str, device: torch.device, *, rank: int, world_size: int) -> HeldOut | None:
        tensors = self.tensors(stage, device)
        if len(tensors[0]) == 0:
            return None
        batch_size = max(self.data.batch_size, EVALUATION_ROWS)
        return HeldOut(tensors, batch_size=batch_size, rank=rank, world_size=world_size)

    def leave(self, loader: Loader, history: Sequence[dict[str, float]], *, exhibit: bool) -> tuple[Tensors, Exhibits]:
        inputs, targets = self.tensors("test", self.family.device)
        outputs = torch.cat([self.family(batch) for batch in inputs.split(EVALUATION_ROWS)])
        shown = self.family.exhibits((inputs[:EXHIBITED_ROWS], targets[:EXHIBITED_ROWS])) if exhibit else {}
        if self.family.settled and "worst_mistakes" in shown:  # they are looked at as they came
            raw, _ = self.raw("test", self.family.device)
            shown["worst_mistakes"]["inputs"] = raw[shown["worst_mistakes"]["rows"]]
        # What a family calls by names of its own is no prediction of the targets, whatever its width.
        name = "outputs" if self.family.output_names is None else "named_outputs"
        return {name: outputs, "targets": targets}, shown


def _together(parts: dict[int, Tensor], world_size: int) -> dict[int, Tensor]:
    """What all workers have, on the CPU: another's device may not be here."""
    gathered: list[dict[int, Tensor]] = [{}] * world_size
    dist.all_gather_object(gathered, {begin: part.cpu() for begin, part in parts.items()})
    return {begin: part for shares in gathered for begin, part in shares.items()}


class EpisodeSupply(Supply):
    """Episodes in an environment.  What is left of the test is its first episode: what was seen, and said to it."""

    validates = True

    def __init__(self, data: EnvironmentDataModule, agent: Agent, dtype: torch.dtype) -> None:
        self.data, self.agent, self.dtype = data, agent, dtype
        self._opened: list[Lanes | HeldOutEpisodes] = []
        if data.animate:  # better now than when the agent has learnt
            frame(data)
        self.steps_per_epoch = agent.collection.updates(data.steps_per_epoch, data.num_environments, data.batch_size)

    def loader(self, device: torch.device, **settings: Any) -> Loader:
        loader = acting_loader(self.data, self.agent, dtype=self.dtype, device=device, **settings)
        self._opened.append(loader.lanes)
        return loader

    def held_out(self, stage: str, device: torch.device, *, rank: int, world_size: int) -> HeldOutEpisodes:
        episodes = HeldOutEpisodes(
            self.data, self.agent, stage, dtype=self.dtype, device=device, rank=rank, world_size=world_size
        )
        self._opened.append(episodes)
        return episodes

    def leave(self, loader: Loader, history: Sequence[dict[str, float]], *, exhibit: bool) -> tuple[Tensors, Exhibits]:
        assert isinstance(loader, ActingLoader)
        predictions, animation = film(
            self.data, self.agent, dtype=self.dtype, device=self.agent.device, animate=self.data.animate and exhibit
        )
        curve = {
            "episode_steps": torch.tensor([steps for steps, _, _ in loader.ended], dtype=torch.float64),
            "episode_returns": torch.tensor([one for _, one, _ in loader.ended], dtype=torch.float64),
        }
        shown = {"return_curve": curve | greedy_history(history), "animation": animation} if exhibit else {}
        return predictions, {picture: arrays for picture, arrays in shown.items() if arrays}

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


def supply(data: ParquetDataModule | EnvironmentDataModule, family: Family, dtype: torch.dtype) -> Supply:
    if isinstance(data, EnvironmentDataModule):
        assert isinstance(family, Agent), "no other family accepts an environment"
        return EpisodeSupply(data, family, dtype)
    return RowSupply(data, family, dtype)
