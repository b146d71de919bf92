"""A Ray cluster of several raylets on 127.0.0.1: `raylets.py CPUS CPUS ...`, the first of them the head's.

Prints {"address": host:port} when all are there.  Each line on stdin is the number of a node: its processes are killed,
its raylet first.  At the end of stdin the rest goes, too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main(cpus: list[int]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Else Ray's own actors look for a dashboard on this machine, where other tests may have theirs.
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    dashboard: dict[str, Any] = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    head = {"node_ip_address": "127.0.0.1", "num_cpus": cpus[0], **dashboard}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.head_node]
    nodes += [cluster.add_node(node_ip_address="127.0.0.1", num_cpus=number) for number in cpus[1:]]
    try:
        print(json.dumps({"address": cluster.address}), flush=True)
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print(json.dumps({"removed": int(line)}), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]])
