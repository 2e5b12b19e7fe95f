"""Values on their way to another process: pickled, graphs as ONNX writes them, samples as arrays."""

from __future__ import annotations

import dataclasses
import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from se_deploy import graph
from se_deploy.data import Samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.protocols import Array


def dumps(value: object) -> bytes:
    """Return a value as bytes, for a process that this tool trusts."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def loads(data: bytes) -> Any:  # noqa: ANN401 - whatever was written
    """Return what `dumps` wrote. Who can write these bytes can run code: only read what this tool wrote."""
    return pickle.loads(data)  # noqa: S301 - as above


@dataclass(frozen=True, slots=True)
class _Held:
    """Samples in memory (`data.Source`): the files that they came from may be on another machine."""

    arrays: Mapping[int, Mapping[str, Array]]  # by number: one sample as a batch

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these samples as one batch."""
        parts = [self.arrays[number] for number in numbers]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Pickler(pickle.Pickler):
    """Writes graphs as ONNX does: their nodes hold each other, deeper than pickle can follow."""

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401 - pickle's own signature
        """Return how a graph or samples are made again; everything else is pickled as it is."""
        if isinstance(obj, ir.Model):
            return _model_of, (graph.to_bytes(obj),)
        if isinstance(obj, Samples) and not isinstance(obj.source, _Held):
            held = _Held({number: obj.source.fetch([number]) for number in dict.fromkeys(obj.chosen)})
            return Samples, (held, *(getattr(obj, part.name) for part in dataclasses.fields(obj)[1:]))
        return NotImplemented


def _model_of(data: bytes) -> ir.Model:
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
    return model
