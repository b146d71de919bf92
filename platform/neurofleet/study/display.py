"""Display: how a study stands, as a live table on a terminal and as one plain line a second elsewhere.

study 48/64 trials, 3 training, 20 pruned, 1 failed, best val/loss 0.0712 (trial 17) eta=12
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

MOST_ROWS = 5
SECONDS = 1.0


class Display:
    """Context manager.

    num_trials:       of the whole study
    steps_per_trial:  which an untroubled trial takes
    objectives:       the metrics, each with its sign
    """

    def __init__(self, name: str, num_trials: int, steps_per_trial: int, objectives: Mapping[str, int]) -> None:
        self.name, self.num_trials, self.steps_per_trial, self.objectives = (
            name,
            num_trials,
            steps_per_trial,
            objectives,
        )
        self._began = time.monotonic()
        self._last = 0.0
        self._steps = 0  # since this began
        self._over_before: int | None = None
        self._look: Callable[[], Sequence[FrozenTrial]] = tuple
        self._trials: Sequence[FrozenTrial] = ()
        self._best: FrozenTrial | None = None
        self._live: Any = None

    def __enter__(self) -> Display:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._update(force=True)
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        print(line, flush=True)

    def tick(self, num_steps: int) -> None:
        """So many more steps of trials were taken."""
        self._steps += num_steps
        self._update()

    def show(self, trials: Callable[[], Sequence[FrozenTrial]], best: FrozenTrial | None) -> None:
        """`trials` gives all of them; it is asked when there is something to draw."""
        self._look, self._best = trials, best
        if not self._steps:  # until now trials were planned, and their actors started
            self._began = time.monotonic()
        if self._over_before is None:
            self._trials = trials()
            self._over_before = self._num_over()
        self._update()

    def _num_over(self) -> int:
        return sum(trial.state.is_finished() for trial in self._trials)

    def eta(self) -> float | None:
        """Seconds left, by the trials that are over and the steps of those that train."""
        here = self._num_over() - (self._over_before or 0)
        done = max(here, min(self._steps / self.steps_per_trial, here + self._count()["training"]))
        left = self.num_trials - (self._over_before or 0) - done
        return max(left, 0.0) * (time.monotonic() - self._began) / done if done else None

    def _count(self) -> Counter[str]:
        words = {TrialState.RUNNING: "training", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        return Counter(words.get(trial.state, "done") for trial in self._trials if trial.state != TrialState.WAITING)

    def line(self) -> str:
        counts, eta = self._count(), self.eta()
        parts = [f"study {self._num_over()}/{self.num_trials} trials"]
        parts += [f"{counts[word]} {word}" for word in ("training", "pruned", "failed") if counts[word]]
        if self._best is not None:
            parts.append(f"best {next(iter(self.objectives))} {self._best.value:.4g} (trial {self._best.number})")
        return ", ".join(parts) + (f" eta={eta:.0f}" if eta is not None else "")

    def _update(self, *, force: bool = False) -> None:
        if not force and time.monotonic() - self._last < (0.2 if self._live is not None else SECONDS):
            return
        self._last = time.monotonic()
        self._trials = self._look()
        if self._live is None:
            print(self.line(), flush=True)
        else:
            self._live.update(self._drawn())

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        counts, eta = self._count(), self.eta()
        left = "" if eta is None else f"   eta {int(eta) // 60}:{int(eta) % 60:02d}"
        numbers = "   ".join(
            f"{counts[word]} {word}" for word in ("done", "training", "pruned", "failed") if counts[word]
        )
        head = Table.grid(padding=(0, 1))
        here = min(self._steps / self.steps_per_trial, counts["training"])
        bar = ProgressBar(total=self.num_trials, completed=self._num_over() + here, width=24)
        head.add_row(f"[bold]{self.name}", bar, f"{self._num_over()}/{self.num_trials}{left}")
        over = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        return Group(head, numbers, *([self._leaders(over)] if over else []))

    def _leaders(self, over: list[FrozenTrial]) -> Any:
        """The best trials that are over, with their values."""
        from rich.table import Table

        metric, sign = next(iter(self.objectives.items()))
        over.sort(key=lambda trial: trial.values[0] * sign)
        table = Table(title=f"best by {metric}", title_justify="left")
        for name in ("trial", *self.objectives, *_short(over[0].params)):
            table.add_column(name, overflow="fold")
        for trial in over[:MOST_ROWS]:
            cells = [*trial.values, *trial.params.values()]
            table.add_row(str(trial.number), *(f"{one:.4g}" if isinstance(one, float) else str(one) for one in cells))
        return table


def _short(keys: Collection[str]) -> list[str]:
    """`lr` for `optimizer.lr`, where no other key ends so."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return [end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys]
