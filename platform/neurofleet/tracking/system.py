"""System metrics, with the names that MLflow gives them: `system/cpu_utilization_percentage` and so on.

MLflow's own monitors read the machine (CPU, memory, disk, network, NVIDIA GPUs where nvidia-ml-py is installed); the
training process and its children are added as `process_cpu_percentage` (100 = one core) and
`process_memory_megabytes`.
"""

from __future__ import annotations

import logging


class SystemSampler:
    """`sample()` gives the means since the last call."""

    def __init__(self, process_id: int, prefix: str) -> None:
        import psutil
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.prefix = prefix
        self.process_id = process_id
        self.processes: dict[int, psutil.Process] = {}
        self.monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self.monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:
            logging.getLogger(__name__).info("no GPU metrics: %s", error)
        psutil.cpu_percent()  # the first reading has nothing to compare with: take it now, when nobody uses it
        self._process_metrics()

    def sample(self) -> dict[str, float]:
        metrics = self._process_metrics()
        for monitor in self.monitors:
            monitor.collect_metrics()
            metrics |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {self.prefix + name: float(value) for name, value in metrics.items()}

    def _process_metrics(self) -> dict[str, float]:
        """Sums over the training process and its descendants, this one excepted; a process that has gone counts 0."""
        import psutil

        cpu = memory = 0.0
        try:
            root = psutil.Process(self.process_id)  # may be dead before the first sample
            found = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        own = psutil.Process().pid
        self.processes = {
            process.pid: self.processes.get(process.pid, process) for process in found if process.pid != own
        }
        for process in self.processes.values():
            try:
                cpu += process.cpu_percent()
                memory += process.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        return {"process_cpu_percentage": round(cpu, 1), "process_memory_megabytes": round(memory, 1)}
