"""Runs experiments in process groups on this machine, as the launcher's workers would: `run_groups.py JOBS.json`.

JOBS.json lists {experiment, folder, num_workers}, and may say `resume`, or how many of the workers each of several
`nodes` has.  One process imports everything; the workers of each group are its forks, which saves a quarter of a minute
of imports a worker.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from neurofleet.run import run


def worker(rank: int, port: int, job: dict[str, Any]) -> None:
    here = [(local, size) for size in job.get("nodes", [job["num_workers"]]) for local in range(size)]
    local_rank, local_size = here[rank]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(len(here)))
    os.environ.update(LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE=str(local_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=job["num_workers"])
    result = run(job["experiment"], folder=Path(job["folder"]), resume=job.get("resume", False))
    Path(job["folder"], f"metrics-{rank}.json").write_text(json.dumps(result.metrics))
    dist.destroy_process_group()


def group(job: dict[str, Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    children = []
    for rank in range(job["num_workers"]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                worker(rank, port, job)
                code = 0
            except BaseException:  # noqa: BLE001  # a fork may not go on as its parent
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"a worker of {job['folder']} failed: exit codes {codes}")


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        group(each)
