"""Search hyperparameters and architectures: `neurofleet tune family=mlp 'optimizer.lr=tag(log,interval(1e-4,1e-1))'`.

What is searched is written in Hydra's sweep syntax: a,b  choice(...)  range(...)  interval(...)  tag(log, ...).
`study=NAME` goes on with a study; `finder=lr` and `finder=batch_size` measure what that one setting should be, instead.
--cfg job shows the settings, --help lists the choices.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import exit_on_error

if TYPE_CHECKING:
    from neurofleet.study.session import Ended


@hydra.main(version_base="1.3", config_path=str(paths.shipped("configs")), config_name="tune")
def show(config: DictConfig) -> None:
    """For Hydra's own flags, none of which trains."""


def announce(ended: Ended) -> None:
    print("   ".join(f"{count} {state}" for state, count in ended.counts.items()))
    for trial in [ended.best] if ended.best is not None else ended.pareto:
        scores = "   ".join(f"{name} {value:.4f}" for name, value in zip(ended.metrics, trial.values, strict=True))
        changed = " (its last settings; they changed while it trained)" if "inherited" in trial.user_attrs else ""
        print(
            f"trial {trial.number}: {scores}\n  neurofleet {ended.composer.verb.name} {ended.command(trial)}{changed}"
        )
    print("drawing figures ...", flush=True)


def main(overrides: list[str]) -> None:
    print("starting ...", flush=True)  # what follows imports for seconds

    from neurofleet import tracking

    tracking.warm_up()
    from neurofleet.study import finder

    if finder.asked(overrides):
        find(overrides)
        return
    from neurofleet.release.bases import resolve
    from neurofleet.study import session

    order = session.order(overrides, resolve)
    planned = session.begin(order)
    ended = session.conduct(order, planned, announce)
    if planned.config.register and ended.best is not None:
        from neurofleet.release import register

        usual = f"{experiments.data_name(planned.experiment)}-{experiments.family_name(planned.experiment)}"
        name = planned.config.model_name(usual)
        version = register(ended.run_id, ended.folder / "best", name, {"data.digest": planned.data.digest})
        print(f"{'model':24} {name} version {version}")
    print(f"{'study':24} {ended.name} (go on with: neurofleet tune study={ended.name} search.num_trials=...)")
    print(f"{'run':24} {tracking.ui_address(ended.run_id)}")
    print(f"{'folder':24} {ended.folder}")


def find(overrides: list[str]) -> None:
    from neurofleet import tracking
    from neurofleet.study import finder

    found = finder.find(finder.order(overrides))
    print(found.finding.report)
    if found.command is not None:
        print(f"{'suggestion':24} {found.finding.override}\n  neurofleet train {found.command}")
    print(f"{'run':24} {tracking.ui_address(found.run_id)}")
    print(f"{'folder':24} {found.folder}")


if __name__ == "__main__":
    with exit_on_error(), experiments.explained():
        if any(argument.startswith("-") for argument in sys.argv[1:]):
            show()
        else:
            main(sys.argv[1:])
