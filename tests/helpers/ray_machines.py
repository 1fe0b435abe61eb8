"""Simulated machines of a Ray cluster."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astra_gym.experiments.engines.base import EngineFlags
from astra_gym.experiments.engines.ray_cluster import RayEngine

MACHINE = {"num_cpus": 1, "object_store_memory": 80 << 20}
OF_RAY = Path("/tmp/ray")
"""Where Ray notes the address of a cluster, wherever its files are."""


@contextlib.contextmanager
def ray_machines(count: int) -> Iterator[Any]:
    """A cluster whose head runs no cells, and machines with a core each."""
    # sets how Ray is to behave, before it starts anything
    ray = RayEngine(EngineFlags(engine="ray")).ray
    from ray.cluster_utils import Cluster

    folder, known = tempfile.mkdtemp(prefix="ray-"), OF_RAY.exists()
    OF_RAY.mkdir(exist_ok=True)
    cluster = Cluster()
    try:
        cluster.add_node(**MACHINE | {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder})
        for _ in range(count):
            cluster.add_node(**MACHINE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for path in (Path(folder), *([] if known else [OF_RAY])):
            shutil.rmtree(path, ignore_errors=True)


def machine_of(cluster: Any, worker: int) -> Any:
    """The machine whose worker has this process number."""
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    [found] = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == parent]
    return found
