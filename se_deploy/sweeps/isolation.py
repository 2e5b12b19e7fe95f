"""One task in a process of its own: what it does to memory, to threads or to the interpreter ends with it.

A server process that has imported what tasks need forks a new one for each, where the system can.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from se_deploy.errors import SeDeployError
from se_deploy.sweeps.tasks import Failure, LostWorker, Outcome, TimeLimit, failure_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from se_deploy.sweeps.tasks import Places, Task

LOG = "task.log"
"""What a task printed, in its output folder."""

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_SHOWN = 300  # characters of a traceback's last line
_END_S = 5.0  # for a process that was killed to be gone


class Children:
    """The processes that work now, so that whoever stops can end them all."""

    def __init__(self) -> None:
        """Begin with none."""
        self._alive: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def holding(self, process: BaseProcess) -> Iterator[None]:
        """Start `process` and know of it while the block runs."""
        with self._lock:
            if self._closed:
                raise LostWorker("the sweep was stopped", hint="run it again: it goes on where it stopped")
            with _no_main():
                process.start()
            self._alive.add(process)
        try:
            yield
            process.join(_END_S)
        finally:
            process.kill()
            process.join()
            with self._lock:
                self._alive.discard(process)

    def close(self) -> None:
        """End every process, and let none begin."""
        with self._lock:
            self._closed = True
            for process in self._alive:
                process.kill()


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the main program: a new process would import it, and what it imports, before its task.

    Under Ray that is a worker's own program, which takes longer than many a task.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def attempted(
    task: Task, places: Places, node: str, children: Children, *, seconds: float | None, retries: int = 0
) -> Outcome:
    """Run a task, again where its process was lost, and return what became of it.

    `seconds`: what it may take in all; `retries`: how often a lost process is replaced.
    """
    began = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        left = None if seconds is None else seconds - (time.monotonic() - began)
        failure = _once(task, places, children, left)
        lost = failure is not None and failure.kind == LostWorker.__name__
        if not lost or attempts > retries:
            took = time.monotonic() - began
            output = None if failure else places.output
            return Outcome(task.key, node, took, attempts, failure, output)


def _once(task: Task, places: Places, children: Children, seconds: float | None) -> Failure | None:
    context = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        context.set_forkserver_preload([__name__, task.function.__module__])  # of this process's first task
    receiver, sender = context.Pipe(duplex=False)
    process: BaseProcess = context.Process(  # type: ignore[attr-defined] # every kind of context has it
        target=_child, args=(task, places, sender), daemon=False
    )
    try:
        with children.holding(process):
            sender.close()
            if not receiver.poll(seconds):
                process.kill()
                limit = task.seconds or seconds or 0.0
                return failure_of(
                    TimeLimit(f"it took longer than {limit:g} s", hint="give cells more time: --cell-seconds")
                )
            try:
                found: Failure | None = receiver.recv()
            except EOFError:
                process.join(_END_S)
                return failure_of(_lost(process.exitcode, places.output))
            return found
    except LostWorker as e:
        return failure_of(e)
    finally:
        receiver.close()


def _lost(code: int | None, output: Path) -> LostWorker:
    killed = code is not None and code < 0
    name = signal.Signals(-code).name if killed and code is not None else f"exit status {code}"
    why = ", as the system does where memory is short" if name == "SIGKILL" else ""
    said = _last_line(output / LOG)
    return LostWorker(
        f"its process ended before it was done ({name}{why}){said}",
        hint="give it fewer neighbours (--jobs 1, on a cluster `se-deploy worker --cpus 1`), or more memory",
    )


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:_SHOWN]}" if last else ""


def _child(task: Task, places: Places, sender: Connection) -> None:
    """Run the task and send its failure, or None; the process ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    places.output.mkdir(parents=True, exist_ok=True)
    with (places.output / LOG).open("wb", buffering=0) as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    os.chdir(places.inputs)
    try:
        task.function(task.arguments, places)
        found = None
    except SeDeployError as e:
        found = failure_of(e)
    except Exception as e:  # noqa: BLE001 - a defect of ours or of a network's code fails its cell, and no other
        traceback.print_exc()
        words = traceback.format_exception_only(e)[-1].strip()
        found = Failure(type(e).__name__, words[:_SHOWN], f"the traceback is in {LOG} of the cell's folder")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sender.send(found)
    sender.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
