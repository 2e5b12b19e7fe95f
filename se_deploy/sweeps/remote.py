"""What Ray does on a node: with a task, fetch its files, run it, pack what it made; a job, it works on."""

from __future__ import annotations

import functools
import platform
import shutil
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from se_deploy import files, locks, once
from se_deploy.errors import BadInput, SeDeployError
from se_deploy.schema import tool_version
from se_deploy.sweeps import content, isolation
from se_deploy.sweeps.tasks import KEPT, Failure, NotShared, Places, failure_of, inside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from se_deploy.sweeps.tasks import Task


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a task on its node, without its files."""

    node: str
    seconds: float
    attempts: int
    failure: Failure | None
    note: str | None = None  # see Outcome


@dataclass(frozen=True, slots=True)
class Versions:
    """What all nodes must have alike."""

    python: str
    ray: str
    tool: str


@dataclass(frozen=True, slots=True)
class Introduced:
    """What a node says of itself."""

    node: str
    versions: Versions


@dataclass(frozen=True, slots=True)
class Way:
    """How a node does a task."""

    seconds: float | None  # it may take
    retries: int  # of a process that is lost, on the same node
    store: Path | None  # where its files are; None: in Ray's memory
    hands_on: bool = False  # what it keeps comes back for another task, which has no store to find it in


def versions() -> Versions:
    """Return what this machine has, which takes no cluster."""
    import ray  # noqa: PLC0415 - on the node, where it is

    return Versions(platform.python_version(), ray.__version__, tool_version())


def introduced() -> Introduced:
    """Return this node's name and what it has; Ray joins or starts a cluster where there is none yet."""
    return Introduced(here(), versions())


def refuse_other(address: str, found: Versions, own: Versions) -> None:
    """Compare what the node at `address` has with what this machine has. Raises: BadInput that names it."""
    for name, there, here in (
        ("Python", found.python, own.python),
        ("Ray", found.ray, own.ray),
        ("se-deploy", found.tool, own.tool),
    ):
        if there != here:
            raise BadInput(
                f"the node {address} has {name} {there}, this machine {here}",
                hint=f"install {name} {here} there, or {name} {there} here",
            )


def here() -> str:
    """Return this node's name: the machine's and the number that Ray gave: a machine may have several."""
    import ray  # noqa: PLC0415 - on the node, where it is

    return f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:6]}"


def stored(store: Path, key: str) -> Path:
    """Return where a folder that all nodes share has a file, or what a task made."""
    return store / key[:2] / f"{key}.tar"


def read(store: Path, key: str) -> bytes:
    """Return what another node put into the folder that all share. Raises: NotShared."""
    place = stored(store, key)
    try:
        return place.read_bytes()
    except OSError as e:
        raise NotShared(
            f"'{place}' cannot be read: {files.reason_of(e)}",
            hint="name a folder with --store that every node sees by that name, or leave --store out",
        ) from e


@dataclass(frozen=True, slots=True)
class Given:
    """References to what a task reads, each in a list: fetched when it is read; None with a store."""

    inputs: Mapping[str, Any]  # by SHA-256
    before: Sequence[Any] | None = None  # what the task that it follows made
    kept: Sequence[Any] | None = None  # what others of the same kind kept


def on_node(task: Task, given: Given, way: Way) -> tuple[Made, bytes | None, bytes | None]:
    """Do a task where Ray put it; return its record, what it made and what is kept for the next one.

    What keeps its files from coming or going is its failure.
    """
    try:
        return _done(task, given, way)
    except SeDeployError as e:
        return Made(here(), 0.0, 1, failure_of(e)), None, None


def _done(task: Task, given: Given, way: Way) -> tuple[Made, bytes | None, bytes | None]:
    """Fetch a task's files, run it in a process of its own, pack what it made.

    Raises: NotShared, CannotWrite.
    """

    def fetched(key: str, references: Sequence[Any] | None) -> bytes:
        if store is not None:
            return read(store, key)
        data: bytes = _got(references or ())
        return data

    name, store = here(), way.store
    if store is not None and stored(store, task.key).exists():
        return Made(name, 0.0, 0, None), None, None
    with locks.scratch() as place:
        previous = None if given.before is None else place / "before"
        kept = (place if store is None else store) / KEPT
        places = Places(place / "inputs", previous, place / "output", moved=True, kept=kept)
        places.inputs.mkdir()
        for file, sha in task.files.items():
            content.unpack(fetched(sha, given.inputs[sha]), places.inputs / inside(file))
        if places.before is not None and task.after is not None:
            content.unpack(fetched(task.after, given.before), places.before)
        note = None if given.kept is None else _handed_on(given.kept, kept)
        done = isolation.attempted(
            task, places, name, isolation.Children(), seconds=way.seconds, retries=way.retries
        )
        record = Made(name, done.seconds, done.attempts, done.failure, note)
        on = content.packed(kept) if way.hands_on and kept.is_dir() else None
        if done.failure is not None:
            return record, None, on
        data = content.packed(places.output)
    if store is None:
        return record, data, on
    once.publish(data, stored(store, task.key))
    return record, None, on


def _handed_on(references: Sequence[Any], kept: Path) -> str | None:
    """Unpack what others of its kind kept, which saves a task work; return why it must do without."""
    import ray  # noqa: PLC0415 - on the node, where it is

    try:
        data = _got(references)
        if data is not None:
            content.unpack(data, kept)
    except (ray.exceptions.RayError, BadInput) as e:
        shutil.rmtree(kept, ignore_errors=True)  # what came of it
        return f"what was kept for it is lost, it did all by itself: {last_line(e)}"
    return None


def last_line(error: Exception) -> str:
    """Return what an error of Ray's comes to: a traceback of the node precedes it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


def _got(references: Sequence[Any]) -> Any:  # noqa: ANN401 - bytes, or None where there was nothing to hand on
    """Return what the only one of `references` refers to."""
    import ray  # noqa: PLC0415 - on the node, where it is

    (data,) = ray.get(list(references))
    return data


@dataclass(frozen=True, slots=True)
class JobAsked:
    """What is done with a job: `work(load(shared), job)`."""

    work: Callable[[Any, bytes], bytes]
    load: Callable[[bytes], Any]
    key: str  # the SHA-256 of what jobs share
    shared: Sequence[Any] = field(compare=False)  # Ray's reference to it, in a list: fetched when it is read


@dataclass(frozen=True, slots=True)
class JobDone:
    """What came of a job."""

    node: str
    seconds: float
    data: bytes


def job(asked: JobAsked, data: bytes) -> JobDone:
    """Do one of many independent jobs in this process, which goes on to the next."""
    began = time.monotonic()
    made = asked.work(_shared(asked), data)
    return JobDone(here(), time.monotonic() - began, made)


@functools.lru_cache(maxsize=1)  # jobs that share something come one after the other
def _shared(asked: JobAsked) -> Any:  # noqa: ANN401 - whatever `load` makes
    import ray  # noqa: PLC0415 - on the node, where it is

    (data,) = ray.get(list(asked.shared))
    return asked.load(data)
