"""Run samples through a graph and observe its inner tensors, a few batches at a time."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from onnx_ir.passes import common

from se_deploy import batching, graph
from se_deploy.errors import BadData
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, Progress, Runtime

T = TypeVar("T")

_BATCH_BYTES = 24 << 20  # of inner tensors that one run should hold
_MAX_BATCH = 4  # larger ones run no faster on a CPU and hold more
_MAX_WORKERS = 4  # each holds a batch of inner tensors


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy of `model` whose outputs are these tensors; graph inputs among them are left out.

    `model` itself where they are its outputs already.
    """
    if [v.name for v in model.graph.outputs] == list(tensors):
        return model
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    # ONNX Runtime refuses a graph without nodes: where only inputs are asked for, the first node stays.
    wanted = [values[name] for name in tensors if name in values] or list(values.values())[:1]
    copy.graph.outputs.extend(wanted)
    common.RemoveUnusedNodesPass()(copy)  # no more: this graph is run and thrown away
    return copy


def frozen_batch(model: ir.Model) -> int | None:
    """Return the number of samples that the graph is frozen to; None where it is free."""
    firsts = {known[0] for value in model.graph.inputs if (known := graph.dims(value))}
    return firsts.pop() if len(firsts) == 1 else None


def observe(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Samples,
    runtime: Runtime,
    *,
    progress: Progress = silent,
    step: str = "observe",
) -> Iterator[dict[str, Array]]:
    """Yield the arrays of `tensors`, graph inputs included, for every batch of `samples`.

    A graph that is frozen to a batch gets the last one padded; what is made of padding is not seen.

    Raises: BadData where a tensor is not finite.
    """
    inputs = {v.name for v in model.graph.inputs}

    def whole(start: int, arrays: dict[str, Array]) -> dict[str, Array]:
        for name, array in arrays.items():
            check_finite(name, start, array, is_input=name in inputs)
        return arrays

    return map_batches(model, tensors, samples, runtime, whole, progress=progress, step=step)


def map_batches(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Samples,
    runtime: Runtime,
    digest: Callable[[int, dict[str, Array]], T],
    *,
    without_rows: Collection[str] = (),
    sample_bytes: int | None = None,
    numbered: str | None = None,
    progress: Progress = silent,
    step: str = "observe",
) -> Iterator[T]:
    """Yield `digest(first sample, arrays)` of every batch, in order; as `observe` otherwise.

    A few batches are run and digested at a time, each in a thread of its own: a session that runs node by
    node keeps one core busy. So `digest` must neither change nor share what another call reads.
    `without_rows` names tensors that hold no row for each sample. `sample_bytes` is what a run holds of each
    sample; None: what `tensors` take. `numbered` is an input of the graph, an int64 scalar, that is given the
    number of a run's first sample.
    """
    fixed = frozen_batch(model)

    def run(start: int, feeds: Mapping[str, Array]) -> T:
        rows = batching.rows(feeds)
        beside = {} if numbered is None else {numbered: np.array(start, np.int64)}
        if fixed is not None and rows < fixed:
            made = session.run({**batching.padded(feeds, fixed), **beside})
            arrays = {
                **feeds,
                **{k: a if k in without_rows else _unpadded(a, fixed, rows) for k, a in made.items()},
            }
        else:
            arrays = {**feeds, **session.run({**feeds, **beside})}
        return digest(start, {name: arrays[name] for name in tensors})

    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with runtime.open(with_outputs(model, tensors)) as session, ThreadPoolExecutor(workers) as pool:
        size = fixed
        if size is None:
            if sample_bytes is None:
                first = next(samples.batches(1))
                seen = {**first, **session.run(first)}
                sample_bytes = sum(seen[name].nbytes for name in tensors)
            most = int(np.clip(_BATCH_BYTES // max(1, sample_bytes), 1, _MAX_BATCH))
            rounds = -(-samples.count // (workers * most))
            size = -(-samples.count // (workers * rounds))  # no thread waits for the others' last batch
        running: deque[tuple[int, Future[T]]] = deque()
        started = 0
        for feeds in samples.batches(size):
            count = batching.rows(feeds)
            running.append((started + count, pool.submit(run, started, feeds)))
            started += count
            if len(running) > workers:
                done, future = running.popleft()
                yield future.result()
                progress(step, done, samples.count)
        while running:
            done, future = running.popleft()
            yield future.result()
            progress(step, done, samples.count)


def _unpadded(array: Array, size: int, rows: int) -> Array:
    """Drop what was made of padding; a tensor without rows of samples keeps it, which adds no new value."""
    return array[: len(array) // size * rows] if array.ndim and len(array) % size == 0 else array


def check_finite(name: str, start: int, *arrays: Array, is_input: bool = False) -> None:
    """Raise BadData where one of the arrays that were made of tensor `name` is not finite."""
    for array in arrays:
        # A sum that is finite has finite terms, and is cheaper than looking at each.
        with np.errstate(over="ignore", invalid="ignore"):
            total = array.sum(dtype=np.float32)
        if np.isfinite(total) or np.isfinite(array).all():
            continue
        what = "NaN" if np.isnan(array).any() else "infinite values"
        raise BadData(
            f"the {'input' if is_input else 'tensor'} '{name}' holds {what} on the samples from number "
            f"{start} on",
            hint="take those samples out of the data"
            if is_input
            else "the network overflows or divides by 0 on this data: check --mean and --std, or leave out "
            "these samples",
        )
