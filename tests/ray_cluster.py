"""A real Ray cluster of two nodes on loopback, each with a device of its own, in processes of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `sweep`"
)
DEVICES = ("sm86", "sm89")
_SCRIPT = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for device in sys.argv[1:]:
    resources = {f"se_deploy:{device}": 1}
    cluster.add_node(num_cpus=1, num_gpus=0, resources=resources, object_store_memory=100_000_000)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
_ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_WAIT_S = 120


@dataclass
class Cluster:
    """A running cluster, and how a sweep joins it."""

    address: str
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to find it with --on ray."""
        return os.environ | _ALONE | {"RAY_ADDRESS": self.address}

    def workers(self, task: str) -> list[int]:
        """The processes of its nodes that do a task of this name now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(f"ray::{task}".encode()):
                    found.append(int(path.parent.name))
        return found

    @contextlib.contextmanager
    def killing_one(self, task: str):
        """Kill the first process that does such a task; give what was killed."""
        killed: list[int] = []
        ended = threading.Event()

        def wait() -> None:
            while not killed and not ended.wait(0.02):
                for pid in self.workers(task)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            yield killed
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def two_nodes(folder: Path):
    """Start a node for each of DEVICES; end them."""
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), *(str(Path(__file__).parents[n]) for n in (1, 0))]
    environment = os.environ | _ALONE | {"PYTHONPATH": os.pathsep.join(path)}
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *DEVICES],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield Cluster(_address(process), process)
        finally:
            process.stdin.close()
            try:
                process.wait(_WAIT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end and process.poll() is None:
        line = process.stdout.readline()
        if line.startswith("127.0.0.1:"):
            return line.strip()
    raise AssertionError("the cluster did not start")
