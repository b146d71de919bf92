"""The command line: `neurofleet VERB ...`.  A verb imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import sys

import click

from neurofleet import paths
from neurofleet.errors import ConfigError, exit_on_error, nearest

GROUPS = {
    "Run": ("train", "finetune", "tune", "submit"),
    "Data and models": ("data", "models", "runs"),
    "Platform": ("up", "status", "jobs", "down"),
}
RAW = {"ignore_unknown_options": True, "allow_extra_args": True}


class Verbs(click.Group):
    """A group that lists its verbs by theme and knows the neighbours of a misspelt one."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise ConfigError(f"there is no verb {args[0]!r}; {nearest(args[0], self.commands)}")
        return super().resolve_command(context, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neurofleet")
def neurofleet() -> None:
    """Neurofleet trains, tunes, tracks and transfers every neural-network family, from one laptop to a cluster."""


@neurofleet.command(context_settings=RAW, add_help_option=False)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(overrides: tuple[str, ...]) -> None:
    """Train a network here: neurofleet train family=cnn data=mnist5k"""
    _script("train", overrides)


@neurofleet.command(context_settings=RAW, add_help_option=False)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def finetune(overrides: tuple[str, ...]) -> None:
    """Start from a trained network: neurofleet finetune base=models:/mnist5k-cnn/1 data=digits"""
    _script("finetune", overrides)


@neurofleet.command(context_settings=RAW, add_help_option=False)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def tune(overrides: tuple[str, ...]) -> None:
    """Search settings, or finder=lr|batch_size: neurofleet tune family=mlp 'optimizer.lr=interval(1e-4,1e-1)'"""
    _script("tune", overrides)


@neurofleet.command(context_settings=RAW)
@click.argument("pipeline")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def submit(pipeline: str, overrides: tuple[str, ...]) -> None:
    """Send a pipeline to the platform: neurofleet submit train family=cnn data=mnist5k

    Takes what the pipeline's own verb takes, follows the job, and ends with its exit code; Ctrl-C leaves it running.
    """
    if pipeline not in _pipelines():
        raise ConfigError(f"there is no pipeline {pipeline!r} to submit; {nearest(pipeline, _pipelines())}")
    check = {"tune": _check_study, "finetune": _check_finetuning}.get(pipeline, _check_run)
    check(list(overrides))  # a mistake shows here, not in a job's log
    from neurofleet import cluster

    sys.exit(cluster.submit([pipeline, *overrides]))


@neurofleet.group()
def data() -> None:
    """The datasets of this project: list, show NAME, prepare NAME"""


@data.command("list")
def data_list() -> None:
    """All datasets: rows, kind, task; digests where there is room."""
    from rich.console import Console

    from neurofleet.data import catalog

    catalog.print_listing(Console())


@data.command("show")
@click.argument("name")
def data_show(name: str) -> None:
    """One dataset: rows, spec, digest, class balance."""
    from rich.console import Console

    from neurofleet.data import catalog

    catalog.print_description(name, Console())


@data.command("prepare")
@click.argument("name")
def data_prepare(name: str) -> None:
    """Write a dataset from its source into data/NAME."""
    _script("prepare", (name,))


@neurofleet.group()
def models() -> None:
    """Registered networks: list, show NAME, alias NAME VERSION ALIAS"""


@models.command("list")
def models_list() -> None:
    """All models: latest version, aliases, family, data, and what they were fine-tuned from."""
    from rich.console import Console

    from neurofleet.release import listing

    listing.print_models(Console())


@models.command("show")
@click.argument("name")
def models_show(name: str) -> None:
    """One model: its versions and their scores, and the tree of what was fine-tuned from what."""
    from rich.console import Console

    from neurofleet.release import listing

    listing.print_model(name, Console())


@models.command("alias")
@click.argument("name")
@click.argument("version")
@click.argument("alias")
def models_alias(name: str, version: str, alias: str) -> None:
    """Name a version: neurofleet models alias digits-cnn 3 champion"""
    from rich.console import Console

    from neurofleet.release import listing

    listing.set_alias(name, version, alias, Console())


@neurofleet.group()
def runs() -> None:
    """Tracked runs: sync"""


@runs.command("sync")
def runs_sync() -> None:
    """Deliver to MLflow what runs here could not while it was away; each record arrives once."""
    from neurofleet.tracking import orphans

    num_runs = orphans.sync()
    print(f"{num_runs} runs were completed" if num_runs else "nothing waits: all runs here are complete in MLflow")


@neurofleet.command()
@click.option("--ray-port", type=int, help="of the Ray head")
@click.option("--dashboard-port", type=int, help="of Ray's dashboard and Jobs API")
@click.option("--mlflow-port", type=int, help="of the MLflow server")
def up(ray_port: int | None, dashboard_port: int | None, mlflow_port: int | None) -> None:
    """Start the local platform (a Ray head and an MLflow server), or say that it is up."""
    from neurofleet import cluster

    cluster.up(ray_port=ray_port, dashboard_port=dashboard_port, mlflow_port=mlflow_port)


@neurofleet.command()
def status() -> None:
    """What is up, where, and what it is doing."""
    from neurofleet import cluster

    cluster.status()


@neurofleet.command()
def down() -> None:
    """End what `up` started, and nothing else."""
    from neurofleet import cluster

    cluster.down()


@neurofleet.group()
def jobs() -> None:
    """Submitted jobs: logs ID"""


@jobs.command("logs")
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="until the job ends; then exit with its code")
def jobs_logs(job_id: str, follow: bool) -> None:
    """What a job has printed."""
    from neurofleet import cluster

    if follow:
        sys.exit(cluster.follow(job_id))
    cluster.show_log(job_id)


def _check_run(overrides: list[str]) -> None:
    from neurofleet import experiment as experiments
    from neurofleet.data import catalog

    experiment = experiments.compose(overrides)
    resume = next((override.removeprefix("resume=") for override in overrides if override.startswith("resume=")), None)
    if resume is None:
        catalog.need(experiment["data"])
    else:
        from neurofleet.launch.record import resumed

        resumed(resume, experiment, overrides)


def _check_finetuning(overrides: list[str]) -> None:
    from neurofleet import experiment as experiments
    from neurofleet.data import catalog
    from neurofleet.launch.record import resumed
    from neurofleet.release import bases
    from neurofleet.transfer import order as orders

    settings = experiments.plain(experiments.composed("finetune", overrides))
    if settings["resume"] is not None:
        orders.resumed(resumed(str(settings["resume"]), settings, overrides))
        return
    catalog.need(settings["data"])
    orders.Start(bases.named(settings["base"])).order(settings)


def _check_study(overrides: list[str]) -> None:
    from neurofleet.study import finder, session

    if finder.asked(overrides):
        finder.order(overrides)
    else:
        from neurofleet.release.bases import resolve

        session.begin(session.order(overrides, resolve))


def _pipelines() -> list[str]:
    return sorted(path.stem for path in paths.shipped("pipelines").glob("*.py") if path.stem != "prepare")


def _script(name: str, arguments: tuple[str, ...]) -> None:
    """Run a pipeline in this process, as `python pipelines/NAME.py ARGUMENTS` would."""
    import runpy

    path = paths.shipped("pipelines") / f"{name}.py"
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def main() -> None:
    with exit_on_error():
        neurofleet(prog_name="neurofleet")


if __name__ == "__main__":
    main()
