"""Independent jobs of one command on the workers of a cluster: bytes in, bytes out, in the order given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from se_deploy import files
from se_deploy.errors import BadInput, RemoteFailed
from se_deploy.sweeps import remote
from se_deploy.sweeps.tasks import LostWorker, NoWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from se_deploy.sweeps.cluster import Cluster

_RETRIES = 1  # of a job whose worker was lost; another loss is an error
_AHEAD = 2  # jobs that Ray is given for each processor: no worker waits for the next one
_POLL_S = 1.0  # how often lost nodes are looked for while nothing ends
_NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
_HINT = "start a worker again, or leave --on out: this machine does the same alone"


@dataclass(frozen=True, slots=True)
class Share:
    """What one node did."""

    node: str
    jobs: int
    seconds: float


def opened(cluster: Cluster, facts: Callable[[], Mapping[str, str]]) -> Jobs:
    """Return the nodes whose `facts`, on which results depend, are those of this machine.

    Raises: BadInput where there is none.
    """
    own = facts()
    alike: list[str] = []
    left_out = []
    for node_id, address, found in cluster.asked(facts):
        unlike = [
            f"{name} {found.get(name, 'missing')}, here {own.get(name, 'missing')}"
            for name in sorted(own.keys() | found.keys())
            if found.get(name) != own.get(name)
        ]
        if unlike:
            left_out.append(f"the node {address} gets no job, results may differ there: {unlike[0]}")
        else:
            alike.append(node_id)
    if not alike:
        why = left_out[0] if left_out else "none has a processor to give"
        raise BadInput(
            f"no node of the cluster computes as this machine does: {why}",
            hint="install the same versions there, or leave --on out",
        )
    return Jobs(cluster, frozenset(alike), tuple(left_out))


@dataclass(frozen=True, slots=True)
class Kind:
    """What is done with jobs of one kind, `work(load(shared), job)`; both are of a module's top level."""

    name: str  # as Ray shows it
    work: Callable[[Any, bytes], bytes]
    load: Callable[[bytes], Any]


@dataclass(slots=True)
class Jobs:
    """The nodes of a cluster that do jobs, and who did how many of them."""

    cluster: Cluster
    nodes: frozenset[str]  # Ray's numbers of the nodes that may be given jobs
    left_out: tuple[str, ...] = ()  # nodes that may not, each with its reason
    _shared: dict[str, Any] = field(default_factory=dict)  # references by SHA-256
    _done: dict[str, Share] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """How many jobs the nodes do at a time. Raises: NoWorker where it is none."""
        cpus = sum(int(node["Resources"].get("CPU", 0)) for node in self._alive())
        if not cpus:
            raise NoWorker("no worker of the cluster has a processor for jobs like these", hint=_HINT)
        return cpus

    @property
    def shares(self) -> tuple[Share, ...]:
        """What each node did, by name."""
        return tuple(self._done[name] for name in sorted(self._done))

    def each(
        self, kind: Kind, shared: bytes, jobs: Iterable[bytes], ended: Callable[[int], None]
    ) -> list[bytes]:
        """Return what `kind` makes of every job, in order; `shared` travels once.

        A job whose worker is lost is done once more.
        Raises: LostWorker where that one is lost too, or all of them are; NoWorker; RemoteFailed where the
        whole cluster is lost.
        """
        sent: dict[Any, int] = {}  # the position of each job that Ray has
        results: dict[int, bytes] = {}
        waiting = enumerate(jobs)
        more = True
        try:
            work = self._work(kind, shared)
            most = _AHEAD * self.width
            while more or sent:
                while more and len(sent) < most:
                    position, job = next(waiting, (0, None))
                    more = job is not None
                    if job is not None:
                        sent[work(job)] = position
                for reference in self._ended(sent):
                    results[sent.pop(reference)] = self._collected(reference)
                    ended(len(results))
        except ConnectionError as e:
            sent = {}
            raise RemoteFailed(f"the cluster was lost: {files.reason_of(e)}", hint=_HINT) from e
        finally:
            for reference in sent:
                self.cluster.ray.cancel(reference, force=True)
        return [results[position] for position in range(len(results))]

    def _work(self, kind: Kind, shared: bytes) -> Callable[[bytes], Any]:
        """Return what hands a job of `kind` to Ray and gives the reference to what comes of it."""
        ray = self.cluster.ray
        key = hashlib.sha256(shared).hexdigest()
        if key not in self._shared:
            self._shared[key] = ray.put(shared)
        asked = remote.JobAsked(kind.work, kind.load, key, [self._shared[key]])
        on_node = ray.remote(remote.job).options(
            num_cpus=1,
            max_retries=_RETRIES,
            label_selector={_NODE_ID: f"in({','.join(sorted(self.nodes))})"},
            name=kind.name,
        )
        return lambda job: on_node.remote(asked, job)

    def _ended(self, sent: dict[Any, int]) -> list[Any]:
        """Return the jobs that have ended, after one has. Raises: LostWorker where no node is left."""
        if not sent:
            return []
        while not (done := self.cluster.ray.wait(list(sent), timeout=_POLL_S)[0]):
            if not self._alive():
                raise LostWorker("every worker of the cluster that did these jobs is gone", hint=_HINT)
        return list(done)

    def _collected(self, reference: Any) -> bytes:  # noqa: ANN401 - Ray's
        ray = self.cluster.ray
        try:
            made: remote.JobDone = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # a defect of ours: its traceback is the message
        except ray.exceptions.RayError as e:
            last = str(e).strip().splitlines()[-1:]
            raise LostWorker(
                f"a job's worker was lost {_RETRIES + 1} times: {' '.join(last)}", hint=_HINT
            ) from e
        before = self._done.get(made.node, Share(made.node, 0, 0.0))
        self._done[made.node] = Share(made.node, before.jobs + 1, before.seconds + made.seconds)
        return made.data

    def _alive(self) -> list[Any]:
        return [node for node in self.cluster.ray.nodes() if node["Alive"] and node["NodeID"] in self.nodes]
