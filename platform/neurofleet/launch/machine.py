"""What this machine has, and which processes on it still run; nothing heavy is imported to find out."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

CLOCK_SLACK = 2.0  # seconds that a start time, which is computed from the boot time, may drift
CGROUP = Path("/sys/fs/cgroup")


def num_cpus(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: its affinity, and the quota of its container if there is one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = [cgroup / "cpu.max"]
    if not files[0].exists():  # version 1 of cgroups has a file for each
        files = [cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"]
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
    except (OSError, ValueError):
        return usable
    return min(usable, max(1, int(quota) // int(period))) if quota.isdigit() else usable


def num_gpus() -> int:
    """NVIDIA devices that this process may use, counted as Ray counts them: NVML's, less what CUDA does not show."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0:
        return 0
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count.value
    return 0 if visible == "NoDevFiles" else min(count.value, len([name for name in visible.split(",") if name]))


def running(recorded: Mapping[int, float]) -> list[psutil.Process]:
    """Those of the processes {pid: start time} that still run; a pid that somebody else got later does not count."""
    found = []
    for pid, begun in recorded.items():
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - begun) < CLOCK_SLACK and runs(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_open(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
