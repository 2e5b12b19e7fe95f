"""Tasks on a Ray cluster: Ray schedules, moves what tasks make, and tries again where a worker was lost.

Here stands what a task needs (which resource, which files) and what became of it. Ray is imported when a
cluster is opened.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from se_deploy import extras, files, locks, once
from se_deploy.errors import BadInput, RemoteFailed
from se_deploy.sweeps import content, remote
from se_deploy.sweeps.tasks import (
    Count,
    LostWorker,
    Node,
    NotShared,
    NoWorker,
    Outcome,
    failure_of,
    inherited,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from se_deploy.sweeps.tasks import Task

T = TypeVar("T")

PREFIX = "se_deploy:"
"""Of the resources that a worker has: "se_deploy:orin-nano" is its device, which one task uses at a time."""

ON_A_NODE, ON_CLIENT = "ray", "ray://"
"""The cluster that this machine is a node of, and how the address of another one begins."""

ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch that, at "0", lets 127.0.0.1 be what it says: else Ray takes an outer address of the machine
for it, and listens on every one."""

_NOTED = "auto"  # of RAY_ADDRESS: the cluster that this machine is a node of, as without it

_AHEAD = 4
"""Tasks that Ray is given for each processor and kind of device: no worker waits for the next one, and what a
step made is read before steps further behind make more."""

_LOST = "a lost node"  # that did a step, as results name it
_CONNECT_S = 10.0  # for a first node to answer
_JOINS = 4
"""Tries to join from elsewhere: a first node starts a process for each that joins, by a fork beside gRPC's
threads, and now and then it dies at once (ray-project/ray#63202)."""

_POLL_S = 1.0  # how often progress is told, and lost devices are looked for, while nothing ends
_PROBE_S = 120.0  # for a node to say what it is: its first process has to start
_RETRIES_OF_A_PROBE = 2


@dataclass(frozen=True, slots=True)
class _Sent:
    """A task that Ray has: its record, its files, and what it follows."""

    task: Task
    files: Any  # the reference to what it makes
    kept: Sequence[Any] | None  # to what it keeps for the next one of its kind, in a list; None: for nobody
    found: Sequence[Any] | None  # to what was kept before it


@contextlib.contextmanager
def opened(on: str, *, retries: int, store: Path | None) -> Iterator[Cluster]:
    """Join the cluster that this machine is a node of ("ray"), or one elsewhere ("ray://HOST:PORT").

    Raises: MissingRuntime without Ray; BadInput where no cluster answers, or versions differ between nodes;
    RemoteFailed where it is lost meanwhile.
    """
    address = reached(on)
    host = address.removeprefix(ON_CLIENT).rpartition(":")[0]
    if is_loopback(host) and not address.startswith(ON_CLIENT):
        os.environ[ON_LOOPBACK] = "0"  # read when Ray is imported, which else looks for the node elsewhere
    import ray  # noqa: PLC0415 - an optional extra, which nothing else needs

    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what befalls its workers; ours is data
        try:
            _join(ray, address)
        except ConnectionAbortedError as e:
            raise BadInput(
                f"--on {on}: what serves a sweep there did not start: {remote.last_line(e)}",
                hint="see ray_client_server*.err in /tmp/ray/session_latest/logs of the first node",
            ) from e
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as e:
            raise _refused(on, files.reason_of(e)) from e
        try:
            shared = None if store is None else store.absolute()  # a node works in a folder of its own
            yield Cluster(ray, retries, shared, _nodes(ray))
        finally:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:  # noqa: ANN401 - the module, which has no types here
    """Join a cluster, once more where the process died that its first node started for this sweep."""
    for left in reversed(range(_JOINS)):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except ConnectionAbortedError:
            if not left:
                raise
        else:
            return


def reached(on: str) -> str:
    """Return the address of the cluster that `on` means, without joining it.

    Raises: MissingRuntime without Ray; BadInput where nobody answers there.
    """
    extras.require("ray", f"--on {on}")
    address = on if on != ON_A_NODE else _address()
    host, _, port = address.removeprefix(ON_CLIENT).rpartition(":")
    _check_answers(on, host.strip("[]"), port)
    return address


def is_loopback(host: str) -> bool:
    """Whether nobody else can reach `host`: a name or an address, of IPv6 also in brackets."""
    plain = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return plain == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (address if mapped is None else mapped).is_loopback


def _address() -> str:
    """Return where the cluster is that this machine is a node of, as Ray notes it. Raises: BadInput."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in {"", _NOTED}:
        return named
    noted = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    if not noted.is_file():
        by = f", and RAY_ADDRESS={named} asks for the one that it is a node of" if named else ""
        raise _refused(ON_A_NODE, f"this machine is no node of one{by}")
    return files.read_text(noted).strip()


def _check_answers(on: str, host: str, port: str) -> None:
    """Raise BadInput where nobody listens: Ray would ask for minutes."""
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as e:
        raise _refused(on, f"nobody answers at {host}:{port} ({files.reason_of(e)})") from e


def _refused(on: str, reason: str) -> BadInput:
    if "ersion mismatch" in reason or "ersions" in reason:
        hint = "install one version of Python and of Ray on every node"
    elif on == ON_A_NODE:
        hint = "start a node here first: `se-deploy worker --head --address 127.0.0.1:6379`"
    else:
        hint = "give ray://HOST:10001 of the first node; a node on 127.0.0.1 is joined by --on ray"
    return BadInput(f"--on {on}: no cluster can be joined: {reason}", hint=hint)


def _nodes(ray: Any) -> tuple[Node, ...]:  # noqa: ANN401 - the module, which has no types here
    """Return every node with its tags. Raises: BadInput where one has other versions than this machine."""
    own = remote.versions()
    nodes = []
    for node, found in _asked(ray, remote.introduced):
        remote.refuse_other(node["NodeManagerAddress"], found.versions, own)
        nodes.append(Node(found.node, _tags(node)))
    return tuple(nodes)


def _asked(
    ray: Any,  # noqa: ANN401 - the module, which has no types here
    question: Callable[[], T],
) -> list[tuple[Mapping[str, Any], T]]:
    """Return every node that is alive with its answer.

    Raises: BadInput where one gives none; RemoteFailed where the whole cluster is lost.
    """
    try:
        return _answered(ray, question)
    except ConnectionError as e:
        raise RemoteFailed(
            f"the cluster was lost while its nodes were asked what they are: {files.reason_of(e)}",
            hint="look at its first node, then run the same again",
        ) from e


def _answered(
    ray: Any,  # noqa: ANN401 - the module, which has no types here
    question: Callable[[], T],
) -> list[tuple[Mapping[str, Any], T]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - as ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    probe = ray.remote(question)
    asked = [
        probe.options(
            num_cpus=0,
            max_retries=_RETRIES_OF_A_PROBE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in alive
    ]
    answers = []
    for node, reference in zip(alive, asked, strict=True):
        try:
            answers.append((node, ray.get(reference, timeout=_PROBE_S)))
        except (ray.exceptions.RayError, ImportError) as e:
            own = remote.versions()
            raise BadInput(
                f"the node {node['NodeManagerAddress']} cannot work: {remote.last_line(e)}",
                hint=f"install se-deploy {own.tool} there, with Python {own.python} and Ray {own.ray}",
            ) from e
    return answers


def _tags(node: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name.removeprefix(PREFIX) for name in node["Resources"] if name.startswith(PREFIX)))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was joined."""

    ray: Any  # the module
    retries: int
    store: Path | None  # a folder that every node sees; None: what tasks read and make is in Ray's memory
    nodes: tuple[Node, ...]
    _inputs: dict[str, Any] = field(default_factory=dict)  # references by SHA-256

    def asked(self, question: Callable[[], T]) -> list[tuple[str, str, T]]:
        """Return of every node that takes work its number, its address and its answer.

        Raises: BadInput, RemoteFailed.
        """
        return [
            (node["NodeID"], node["NodeManagerAddress"], answer)
            for node, answer in _asked(self.ray, question)
            if node["Resources"].get("CPU", 0) >= 1
        ]

    def run(
        self,
        tasks: Sequence[Task],
        inputs: Mapping[str, Path],
        *,
        ended: Callable[[Outcome], None],
        count: Callable[[Count], None],
    ) -> None:
        """Work on every task; see `Executor`."""
        waiting = list(tasks)
        outcomes: dict[str, Outcome] = {}
        made: dict[str, Any] = {}  # references to what others read, by the key of who made it
        kept: dict[str | None, Sequence[Any] | None] = {}  # and to what is kept for the next of its kind
        spent: dict[str | None, float] = {None: 0.0}  # seconds, with those of all that a task follows
        reused = {task.reuses for task in tasks}
        readers = Counter(task.after for task in tasks)
        ahead = _AHEAD * max(1, round(self.ray.cluster_resources().get("CPU", 1)))
        sent: dict[Any, _Sent] = {}  # by the reference to a task's record

        def end(task: Task, outcome: Outcome) -> None:
            outcomes[outcome.key] = outcome
            spent[task.key] = spent[task.after] + outcome.seconds
            readers[task.after] -= 1
            if task.after is not None and not readers[task.after]:
                made.pop(task.after, None)  # Ray keeps what is referred to
            ended(outcome)

        with self._working(sent) as scratch:
            while waiting or sent:
                queued = Counter(one.task.needs for one in sent.values())
                for task in [one for one in waiting if {one.after, one.reuses} - {None} <= outcomes.keys()]:
                    if queued[task.needs] >= ahead:
                        continue
                    queued[task.needs] += 1
                    waiting.remove(task)
                    before = None if task.after is None else outcomes[task.after]
                    kept[task.key] = found = kept.pop(task.reuses, None)
                    if before is not None and before.failure is not None:
                        end(task, inherited(task, before))
                    elif task.needs is not None and not self._has(task.needs):
                        end(task, Outcome(task.key, "", 0.0, 0, failure_of(_nobody(task.needs))))
                    else:
                        previous = None if task.after is None else [made[task.after]]
                        given = remote.Given(self._references(task, inputs), previous, found)
                        limit = None if task.seconds is None else max(0.0, task.seconds - spent[task.after])
                        hands_on = self.store is None and task.key in reused
                        way = remote.Way(limit, self.retries, self.store, hands_on)
                        record, result, on = self._submit(task, given, way)
                        sent[record] = _Sent(task, result, [on] if way.hands_on else None, found)
                        if readers[task.key]:
                            made[task.key] = result
                count(self._count(len(sent), len(waiting)))
                done = self.ray.wait(list(sent), timeout=_POLL_S)[0] if sent else []
                for record in done:
                    one = sent.pop(record)
                    outcome = self._collected(one, record, None if readers[one.task.key] else scratch)
                    kept[one.task.key] = one.found if outcome.node == _LOST else one.kept
                    end(one.task, outcome)
                for record in [] if done else self._orphaned(sent):
                    one = sent.pop(record)
                    self.ray.cancel(record, force=True)
                    lost = LostWorker(f"the worker with {one.task.needs} is gone", hint="start it again")
                    end(one.task, Outcome(one.task.key, _LOST, 0.0, 1, failure_of(lost)))

    @contextlib.contextmanager
    def _working(self, sent: Mapping[Any, _Sent]) -> Iterator[Path]:
        """Yield a folder for what comes back, and take back from Ray what is left at the end.

        Raises: RemoteFailed where the whole cluster is lost.
        """
        try:
            with locks.scratch() as scratch:
                yield scratch
        except ConnectionError as e:
            sent = {}
            raise RemoteFailed(
                f"the cluster was lost: {files.reason_of(e)}",
                hint="run the sweep again: it goes on behind the cells that are done",
            ) from e
        finally:
            for record in sent:
                self.ray.cancel(record, force=True)

    def _submit(self, task: Task, given: remote.Given, way: remote.Way) -> tuple[Any, Any, Any]:
        """Hand a task to Ray; return references to its record, to what it makes and to what it keeps."""
        on_node = self.ray.remote(remote.on_node).options(
            num_cpus=1,
            num_gpus=1 if task.needs is not None and self._with_gpu(task.needs) else 0,
            resources={} if task.needs is None else {f"{PREFIX}{task.needs}": 1},
            max_retries=self.retries,
            num_returns=3,
            name=f"{task.function.__name__} {task.key[:8]}",
        )
        record, result, kept = on_node.remote(task, given, way)
        return record, result, kept

    def _references(self, task: Task, inputs: Mapping[str, Path]) -> dict[str, Any]:
        return {sha: self._reference(sha, inputs[sha]) for sha in dict.fromkeys(task.files.values())}

    def _reference(self, sha: str, path: Path) -> Any:  # noqa: ANN401 - Ray's, or None
        """Return Ray's reference to an input, put there once; with a store it is written there, and None."""
        if self.store is not None:
            place = remote.stored(self.store, sha)
            if not place.exists():
                once.publish(content.packed(path), place)
            return None
        if sha not in self._inputs:
            self._inputs[sha] = [self.ray.put(content.packed(path))]
        return self._inputs[sha]

    def _collected(self, sent: _Sent, record: Any, scratch: Path | None) -> Outcome:  # noqa: ANN401 - Ray's
        """Return what became of a task; its files are fetched where nobody else reads them."""
        key = sent.task.key
        try:
            made: remote.Made = self.ray.get(record)
            output = None
            if made.failure is None and scratch is not None:
                output = scratch / key
                data = self.ray.get(sent.files) if self.store is None else remote.read(self.store, key)
                content.unpack(data, output)
        except (NotShared, BadInput) as e:
            return Outcome(key, made.node, made.seconds, made.attempts, failure_of(e))
        except self.ray.exceptions.RayError as e:
            lost = LostWorker(
                f"its worker was lost: {remote.last_line(e)}", hint="look at the node; more tries: --retries"
            )
            return Outcome(key, _LOST, 0.0, self.retries + 1, failure_of(lost))
        return Outcome(key, made.node, made.seconds, made.attempts, made.failure, output, made.note)

    def _alive(self) -> list[Mapping[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _has(self, tag: str) -> bool:
        return any(f"{PREFIX}{tag}" in node["Resources"] for node in self._alive())

    def _with_gpu(self, tag: str) -> bool:
        """Whether every node with this tag has a GPU that Ray knows of, and hides from who asks for none."""
        tagged = [node for node in self._alive() if f"{PREFIX}{tag}" in node["Resources"]]
        return all(node["Resources"].get("GPU", 0) >= 1 for node in tagged)

    def _orphaned(self, sent: Mapping[Any, _Sent]) -> list[Any]:
        """Return the tasks whose device is gone: Ray would let them wait for ever."""
        devices = {one.task.needs for one in sent.values() if one.task.needs is not None}
        gone = {tag for tag in devices if not self._has(tag)}
        return [record for record, one in sent.items() if one.task.needs in gone]

    def _count(self, sent: int, waiting: int) -> Count:
        every, free = self.ray.cluster_resources(), self.ray.available_resources()
        running = min(sent, round(every.get("CPU", 0) - free.get("CPU", 0)))
        return Count(running, waiting + sent - running)


def _nobody(tag: str) -> NoWorker:
    return NoWorker(
        f"no worker has {tag}",
        hint=f"start `se-deploy worker` on one, or with --tag {tag} where it builds without the device",
    )
