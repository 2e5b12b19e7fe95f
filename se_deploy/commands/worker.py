"""`worker`: a Ray node that says what this machine has, so that a device gets its own work and no other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import extras
from se_deploy.backends import registry
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.options import CLIENT_PORT
from se_deploy.sweeps.cluster import ON_LOOPBACK, PREFIX, is_loopback
from se_deploy.targets import DEVICES, Device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.schema.results import Doctor

_MODEL = Path("/proc/device-tree/model")  # what a Jetson calls itself
_VERSION = re.compile(r"\d+\.\d+")
_END_S = 20  # for Ray to end its processes
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports use to its makers unless told not to
    # Ray forks beside gRPC's threads, only to start programs: gRPC's handlers of forks kill some of these.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Which cluster a node is of, and what it offers."""

    host: str
    port: int
    head: bool = False  # the first node: it listens on the address, others join there
    tags: tuple[str, ...] = ()  # besides what is found
    cpus: int | None = None  # None: as many as there are
    client_port: int = CLIENT_PORT


@dataclass(frozen=True, slots=True)
class Listener:
    """What of Ray listens on every address of a machine: it has no option for another one."""

    what: str
    ports: Sequence[int]  # (): ports that the system gives
    processes: tuple[str, ...]  # what the command lines of its processes hold
    of_head: bool = False  # only the first node has it


WORKER_PORTS = range(10002, 20000)
"""What Ray gives the processes of tasks, and those that join as a node: its own default."""

EVERYWHERE = (
    Listener("the cluster's state (the port of --address)", (), ("gcs_server",), of_head=True),
    Listener("the node's and its objects' manager (two ports that the system gives)", (), ("raylet",)),
    Listener("workers and sweeps (10002 to 19999)", WORKER_PORTS, ("ray::", "cluster.opened")),
    Listener("metrics (44217, 44227 and two that the system gives)", (44217, 44227), ("DashboardAgent",)),
)
"""As seen of Ray 2.60; `tests/commands/test_worker.py` holds it."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A node that more than the address asked for reaches."""

    host: str
    head: bool

    @property
    def text(self) -> str:
        """What to warn of."""
        wide = "; ".join(one.what for one in EVERYWHERE if self.head or not one.of_head)
        kept = f" The client port is kept to {self.host} and loopback." if self.head else ""
        return (
            "whoever reaches this node can run code on it, and Ray listens on every address of this machine "
            f"with {wide}: let these be reached from a trusted network only.{kept}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The Ray node that will be started."""

    words: tuple[str, ...]  # its command
    environment: dict[str, str]
    tags: tuple[str, ...]
    gpus: int
    exposed: tuple[Exposed, ...]


def plan(options: WorkerOptions, found: Doctor, *, model: str | None = None) -> Plan:
    """Return the node that offers what `doctor` found. Raises: MissingRuntime without Ray, BadInput.

    `model`: what a board calls itself; None: as this machine does.
    """
    extras.require("ray", "`worker`")
    loopback = is_loopback(options.host)
    if loopback and not options.head:
        raise BadInput(
            f"{options.host} is this machine alone: no second node can join there",
            hint="start the first node with --head on an address of the network, and give that one",
        )
    if options.head and options.client_port in WORKER_PORTS:
        raise BadInput(
            f"--client-port {options.client_port}: Ray gives the ports 10002 to 19999 to its workers",
            hint=f"leave it out, which means {CLIENT_PORT}, or name one outside of them",
        )
    model = _model() if model is None else model
    tags = tuple(dict.fromkeys([*tags_of(found, model), *options.tags]))
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
        f"--num-gpus={found.gpus}", f"--resources={json.dumps({f'{PREFIX}{tag}': 1 for tag in tags})}",
        *([] if options.cpus is None else [f"--num-cpus={options.cpus}"]),
    ]  # fmt: skip
    if options.head:
        words += [
            "--head", f"--node-ip-address={options.host}", f"--port={options.port}",
            f"--ray-client-server-port={options.client_port}", "--include-dashboard=false",
        ]  # fmt: skip
    else:
        words.append(f"--address={options.host}:{options.port}")
    environment = {**_ENVIRONMENT, **({ON_LOOPBACK: "0"} if loopback else {})}
    exposed = () if loopback else (Exposed(options.host, options.head),)
    return Plan(tuple(words), environment, tags, found.gpus, exposed)


def tags_of(found: Doctor, model: str) -> tuple[str, ...]:
    """Return what this machine is known by: its GPU's compute capability, its device, its compilers."""
    states = {check.name: check for check in found.checks}
    tags: list[str] = []
    gpu = states.get("gpu")
    if gpu is not None and gpu.state == "ok":
        name, _, capability = gpu.detail.rpartition(", ")
        tags.append(capability)
        device = _device(f"{name} {model}", capability)
        tags += [device.name] if device is not None else []
    for backend in registry.every():
        check = states.get(backend.name)
        if backend.engines is None or check is None or check.state != "ok":
            continue
        version = _VERSION.match(check.detail)
        tags += [f"{backend.name}-{version[0]}"] if version else []
    return tuple(tags)


def _device(text: str, capability: str) -> Device | None:
    """Return the device that a name means; of several the one with the longest name."""
    said = f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "
    alike = [d for d in DEVICES if f"sm{d.sm}" == capability and f" {d.name.replace('-', ' ')} " in said]
    return max(alike, key=lambda device: len(device.name), default=None)


def _model() -> str:
    return _MODEL.read_bytes().decode(errors="replace").strip("\0\n") if _MODEL.is_file() else ""


def serve(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run a node until it ends or is interrupted; return its exit status.

    Raises: MissingRuntime where Ray could not start it, as with other versions on the other nodes.
    """
    process = subprocess.Popen(words, env=os.environ | environment, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
    if status:
        raise MissingRuntime(
            f"Ray's node ended with exit status {status}: what it says stands above",
            hint="is the address right, and are Python and Ray those of the first node?",
        )
    return status
