"""From what a user types as `base=...` to the Base that it names."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet import paths
from neurofleet.errors import ConfigError, nearest
from neurofleet.release import FILES
from neurofleet.release.registry import find, opened, versions
from neurofleet.transfer.base import Base
from neurofleet.transfer.stored import stored

if TYPE_CHECKING:
    from mlflow import MlflowClient

FORMS = """\
  models:/NAME/3, models:/NAME/latest, models:/NAME@ALIAS
                                 a registered model
  runs:/ID                       a run
  FOLDER, FILE.safetensors       a run's, or a checkpoint of it
  pretrained/NAME                out of an installed package
  hf/REPOSITORY, hf/FOLDER       as transformers loads it"""


def resolve(uri: str) -> Base:
    """The base that a text names; its own uri never holds an alias, so that it names the same weights tomorrow.

    Raises:
        ConfigError: there is no such thing, or it cannot be a base; says what there is instead.
        UnreachableError: MLflow does not answer.
        CheckpointError: the weights are damaged.
    """
    if uri.startswith("models:"):
        return _of_model(uri)
    if uri.startswith("runs:"):
        return _of_run(uri)
    scheme, _, rest = uri.partition("/")
    if scheme in ("pretrained", "hf"):
        if not rest:
            raise ConfigError(f"base needs a name behind {scheme}/, got {uri!r}; the forms are\n{FORMS}")
        from neurofleet.transfer import hugging_face, pretrained

        base = pretrained.pretrained(rest) if scheme == "pretrained" else hugging_face.hugging_face(rest)
        return dataclasses.replace(base, tags={"base.uri": base.uri, **base.tags})
    return _of_path(uri)


def named(base: object) -> Base:
    """`resolve`, of what a config has as `base`: raises ConfigError where it has none."""
    if not isinstance(base, str):
        raise ConfigError(f"finetune needs base=... to start from, got {base!r}; the forms are\n{FORMS}")
    return resolve(base)


def _of_model(uri: str) -> Base:
    parts = re.fullmatch(r"models:/([^/:]+?)(?:/([^/@]+)|@([^/@]+))?", uri)
    if not parts:
        raise ConfigError(f"base needs models:/NAME/VERSION or models:/NAME@ALIAS, got {uri!r}")
    name, number, alias = (part or "" for part in parts.groups())
    with opened() as client:
        version = find(name, versions(client), number=number, alias=alias)
        tags = {"base.version": str(version.number)}
        if version.run_id:
            tags["base.run_id"] = version.run_id
        if "data.digest" in version.tags:
            tags["base.data.digest"] = version.tags["data.digest"]
        with _downloaded(client, version.uri, client.get_model_version_download_uri(name, str(version.number))) as got:
            return stored(got, uri=version.uri, name=name, tags=tags)


def _of_run(uri: str) -> Base:
    run_id = uri.removeprefix("runs:").strip("/")
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise ConfigError(f"base needs runs:/ID with 32 hexadecimal digits, got {uri!r}; {_near_run(run_id)}")
    uri, folder = f"runs:/{run_id}", paths.run(run_id)
    if (folder / "experiment.yaml").is_file():
        return stored(folder, uri=uri, tags=_run_tags(run_id))
    from mlflow.exceptions import MlflowException

    with opened() as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ConfigError(f"there is no run {run_id} here or in MLflow; {_near_run(run_id)}") from None
        with _downloaded(client, uri, run.info.artifact_uri) as got:
            return stored(got, uri=uri, tags=_digest(run_id, run.data.tags))


def _near_run(run_id: str) -> str:
    return nearest(run_id, [folder.parent.name for folder in (paths.home() / "runs").glob("*/experiment.yaml")])


def _of_path(uri: str) -> Base:
    path = Path(uri).expanduser()
    if not uri or not path.exists():
        beside = [one.name for one in path.parent.glob("[!.]*")] if uri else []
        hint = nearest(path.name, beside, prefix="" if path.parent == Path(".") else f"{path.parent}/")
        close = f"; {hint}" if hint.startswith("did you mean") else ""
        raise ConfigError(f"there is no base {uri!r}{close}; a base is one of\n{FORMS}")
    path = path.resolve()
    run = next((one for one in (path, *list(path.parents)[:2]) if (one / "tracking" / "run.json").is_file()), None)
    if run is None:
        return stored(path, uri=str(path))
    return stored(
        path, uri=str(path), tags=_run_tags(json.loads((run / "tracking" / "run.json").read_text())["run_id"])
    )


def _run_tags(run_id: str) -> dict[str, str]:
    """What MLflow knows of a run that lies here; it may have come from another store."""
    from mlflow.exceptions import MlflowException

    with opened() as client:
        try:
            tags = client.get_run(run_id).data.tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return _digest(run_id, {})
    return _digest(run_id, tags)


def _digest(run_id: str, tags: Mapping[str, str]) -> dict[str, str]:
    known = {"base.data.digest": tags["data.digest"]} if "data.digest" in tags else {}
    return {"base.run_id": run_id} | known


@contextlib.contextmanager
def _downloaded(client: MlflowClient, uri: str, source: str) -> Iterator[Path]:
    """A folder with the files that a base is made of: where they lie on this machine, else a copy for the while.

    Raises:
        ConfigError: they are not all there: somebody else's model, or a run that has not ended.
    """
    import mlflow
    from mlflow.utils.uri import is_local_uri

    source = source.rstrip("/") + ("/artifacts" if uri.startswith("models:") else "")
    names = [Path(one.path).name for one in mlflow.artifacts.list_artifacts(source)]
    lacking = [name for name in FILES if name not in names]
    if lacking:
        raise ConfigError(
            f"a base needs {', '.join(FILES)} among the artifacts of {uri}, lacking {', '.join(lacking)}; take a model "
            "that neurofleet registered, or a run of neurofleet that has ended"
        )
    if is_local_uri(source, is_tracking_or_registry_uri=False):
        yield Path(mlflow.artifacts.download_artifacts(source))  # in its place
        return
    with tempfile.TemporaryDirectory(prefix="neurofleet-base-") as folder:
        for name in FILES:
            mlflow.artifacts.download_artifacts(f"{source}/{name}", dst_path=folder)
        yield Path(folder)
