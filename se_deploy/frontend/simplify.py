"""Remove what changes nothing: onnxsim in a process of its own.

Simplifiers have changed results, lost the dynamic batch and crashed (pains: OnnxSlim#277, onnxsim#101,
#206): what kept the interface is still to be verified by the caller, who can take it back.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph, locks
from se_deploy.errors import BadModel

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_ir as ir

_TIMEOUT_S = 600
# onnxsim imports torch and sympy where they are, for features that are not used here: seconds of CPU.
# It ends with this process, however that ends: PR_SET_PDEATHSIG is 1.
_SIMPLIFY = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[3]):
    sys.exit(1)
sys.modules |= {"torch": None, "sympy": None}
import onnx, onnxsim
model, same = onnxsim.simplify(onnx.load(sys.argv[1]), tensor_size_threshold="64MB")
onnx.save(model, sys.argv[2])
"""


@dataclass(frozen=True, slots=True)
class Simplified:
    """The simplified graph, or the given one where the simplifier failed, and then why."""

    model: ir.Model
    nodes_before: int
    warnings: tuple[str, ...] = ()


def simplify(model: ir.Model) -> Simplified:
    """Return the simplified graph, which takes and gives what `model` does; its answers are not compared."""
    before = model.graph.num_nodes()
    with locks.scratch() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        graph.save(model, given)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _SIMPLIFY, str(given), str(made), str(os.getpid())],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _kept(model, before, f"took more than {_TIMEOUT_S} s")
        if done.returncode or not made.exists():
            lines = done.stderr.strip().splitlines()
            return _kept(model, before, lines[-1] if lines else f"ended with {done.returncode}")
        try:
            small = graph.load(made)
        except BadModel as e:
            return _kept(model, before, e.message)
    for key in [key for key in small.metadata_props if key.startswith("onnxsim.")]:
        del small.metadata_props[key]
    small.metadata_props.update(model.metadata_props)
    if not _same_interface(model, small):
        return _kept(model, before, "changed the shape of an input or output")
    _name_what_was_folded(model, small)
    return Simplified(small, before)


_FOLDED_INTO = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FOLDED = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})


def _name_what_was_folded(given: ir.Model, made: ir.Model) -> None:
    """Call the output of a node by what it now holds.

    onnxsim folds a bias or a BatchNormalization into the convolution before and keeps that one's tensor name,
    which now holds other numbers: whoever compares both graphs tensor by tensor would blame the convolution.
    """
    old = {value.name: value for node in given.graph for value in node.outputs}
    taken = graph.value_names(made)
    for node in made.graph:
        value = node.outputs[0]
        was = old.get(value.name)
        producer = None if was is None else was.producer()
        if was is None or producer is None or value.is_graph_output():
            continue
        if not {node.op_type, producer.op_type} <= _FOLDED_INTO or _reads_same(node, producer):
            continue
        if all(after.outputs[0].name in taken for after in was.consumers()):
            continue  # nothing is gone behind it: the graph computed its weights, which now are constants
        held = _last_folded(was, taken)
        value.name = graph.fresh_name(held if held != was.name else f"{was.name}_folded", taken)
        taken.add(value.name)


def _last_folded(value: ir.Value, kept: Collection[str]) -> str:
    """Return the name behind the constant arithmetic that follows `value` and is in the graph no more."""
    while (reader := graph.sole_consumer(value)) is not None and reader.op_type in _FOLDED:
        others = [one for one in reader.inputs if one is not value]
        if reader.outputs[0].name in kept or any(graph.constant(one) is None for one in others):
            break
        value = reader.outputs[0]
    return str(value.name)


def _reads_same(node: ir.Node, producer: ir.Node) -> bool:
    """Whether two nodes have the same weights and bias."""
    pairs = list(itertools.zip_longest(node.inputs[1:], producer.inputs[1:]))
    arrays = [(graph.constant(one), graph.constant(other)) for one, other in pairs]
    return all(
        (one is None) == (other is None) and (one is None or other is None or np.array_equal(one, other))
        for one, other in arrays
    )


def _same_interface(given: ir.Model, made: ir.Model) -> bool:
    """Whether inputs are the same, and outputs too but for sizes that were unknown and now are not."""
    inputs = [[(v.name, graph.dims(v)) for v in model.graph.inputs] for model in (given, made)]
    outputs = [[(v.name, graph.dims(v)) for v in model.graph.outputs] for model in (given, made)]
    return (
        inputs[0] == inputs[1]
        and len(outputs[0]) == len(outputs[1])
        and all(
            name == other and (before is None or (after is not None and _refines(after, before)))
            for (name, before), (other, after) in zip(*outputs, strict=True)
        )
    )


def _refines(after: tuple[int | None, ...], before: tuple[int | None, ...]) -> bool:
    return len(after) == len(before) and all(b in (None, a) for a, b in zip(after, before, strict=True))


def _kept(model: ir.Model, before: int, reason: str) -> Simplified:
    return Simplified(model, before, (f"onnxsim {reason}: the graph was left as exported",))
