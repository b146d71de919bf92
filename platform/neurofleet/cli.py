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
@click.option("--name", help="who submits the same under the same name gets the same job")
@click.option("--priority", default=0, show_default=True, help="the highest starts first; then the oldest")
@click.option("--time-limit", help="how long it may run, as 90s, 30m or 1h30m; then it saves a checkpoint and ends")
@click.option("--detach", is_flag=True, help="do not follow the job")
@click.option("--json", "as_json", is_flag=True, help="print the job as JSON, and do not follow it")
@click.argument("pipeline")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def submit(
    name: str | None,
    priority: int,
    time_limit: str | None,
    detach: bool,
    as_json: bool,
    pipeline: str,
    overrides: tuple[str, ...],
) -> None:
    """Send a pipeline to the platform: neurofleet submit train family=cnn data=mnist5k

    Takes what the pipeline's own verb takes, or a script in pipelines/, follows the job, and ends with its exit code;
    Ctrl-C leaves it running.
    """
    from neurofleet.cluster.job import seconds
    from neurofleet.submit import submit as send  # a mistake shows here, not in a job's log

    limit = None if time_limit is None else seconds(time_limit)
    job = send(pipeline, overrides, key=name, priority=priority, time_limit=limit)
    from neurofleet.cluster import board, jobs

    if as_json:
        board.print_json(board.row(job))
        return
    print(f"submitted {jobs.describe(job)}", flush=True)
    if not detach:
        sys.exit(jobs.follow(job.id))


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


@neurofleet.group(invoke_without_command=True)
@click.option("--all", "every", is_flag=True, help="all that ever ended, not the last few")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def jobs(context: click.Context, every: bool, as_json: bool) -> None:
    """What was submitted: jobs, jobs show|logs|stop|retry ID"""
    if context.invoked_subcommand is not None:
        return
    from neurofleet.cluster import board

    (board.print_json if as_json else board.print_listing)(board.listing(every=every))


@jobs.command("show")
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True)
def jobs_show(job_id: str, as_json: bool) -> None:
    """How a job came to be what it is; of one that failed the cause and what to do."""
    from neurofleet.cluster import board

    (board.print_json if as_json else board.print_details)(board.details(job_id))


@jobs.command("logs")
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="until the job ends; then exit with its code")
@click.option("--json", "as_json", is_flag=True)
def jobs_logs(job_id: str, follow: bool, as_json: bool) -> None:
    """What a job has printed."""
    from neurofleet.cluster import board
    from neurofleet.cluster import jobs as submitted

    if as_json:
        board.print_json(submitted.log(job_id))
    elif follow:
        sys.exit(submitted.follow(job_id))
    else:
        submitted.show_log(job_id)


@jobs.command("stop")
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True)
def jobs_stop(job_id: str, as_json: bool) -> None:
    """End a job in good order: it saves a checkpoint first."""
    from neurofleet.cluster import board
    from neurofleet.cluster import jobs as submitted

    job = submitted.stop(job_id)
    if as_json:
        board.print_json(board.row(job))
    else:
        print(f"{job.id} is {job.state}{', and asked to stop' if job.state == 'RUNNING' else ''}")


@jobs.command("retry")
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True)
def jobs_retry(job_id: str, as_json: bool) -> None:
    """The same run goes on from its last checkpoint."""
    from neurofleet.cluster import board
    from neurofleet.cluster import jobs as submitted

    job = submitted.retry(job_id)
    if as_json:
        board.print_json(board.row(job))
    else:
        print(f"{job.id} is {job.state}; see it with: neurofleet jobs logs -f {job.id}")


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
