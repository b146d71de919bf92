"""`neurofleet status`: what is up, where, with how much memory, what the cluster has and what it is doing."""

from __future__ import annotations

from typing import Any

from neurofleet.cluster import platform as platforms
from neurofleet.cluster import processes, state
from neurofleet.cluster.state import Platform
from neurofleet.launch import cluster_nodes


def status() -> dict[str, Any]:
    """Print a table; returns what it shows: per half up, address, pids, memory in MB; resources; jobs."""
    platform = state.load()
    if platform is None:
        print("nothing is up; start with: neurofleet up")
        return {name: {"up": False} for name in state.NAMES} | {"resources": {}, "jobs": []}
    report: dict[str, Any] = {name: _half(platform, name) for name in state.NAMES}
    report["ray"]["dashboard"] = platform.dashboard
    report["resources"] = resources(platform.ray.address) if report["ray"]["up"] else {}
    report["jobs"] = platforms.running_jobs()
    _show(report)
    return report


def resources(address: str) -> dict[str, tuple[float, float]]:
    """CPU and GPU of a cluster: name -> (free, total)."""
    nodes = cluster_nodes(address)
    found = {}
    for kind in ("CPU", "GPU"):
        total = sum(node.total_resources().get(kind, 0) for node in nodes)
        if total:
            found[kind] = (sum(node.available_resources().get(kind, 0) for node in nodes), total)
    return found


def _half(platform: Platform, name: str) -> dict[str, Any]:
    half = getattr(platform, name)
    found = processes.members(half, platforms.half_mark(platform, name))
    return {
        "up": platforms.is_up(platform, name),
        "address": half.address,
        "pids": sorted(half.processes),
        "num_processes": len(found),
        "megabytes": processes.memory(found) / 1e6,
    }


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "state", "address", "pids", "processes", "memory")
    for name, title in (("ray", "Ray"), ("mlflow", "MLflow"), ("keeper", "keeper of jobs")):
        half = report[name]
        state_text = "[green]up[/]" if half["up"] else "[red]down[/] (neurofleet up restarts it)"
        pids = " ".join(map(str, half["pids"]))
        table.add_row(
            title, state_text, half["address"], pids, str(half["num_processes"]), f"{half['megabytes']:.0f} MB"
        )
    console = Console()
    console.print(table)
    console.print(f"dashboard {report['ray']['dashboard']}")
    for kind, (free, total) in report["resources"].items():
        console.print(f"{kind}s      {free:g} free of {total:g}")
    console.print(f"jobs      {', '.join(report['jobs']) or 'none running'}")
