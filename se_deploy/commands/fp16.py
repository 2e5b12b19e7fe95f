"""FP16 with its ranges measured: on the user's data where there is any, on noise, black and white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from se_deploy import batching, calibration, verification
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.errors import UnsupportedGraph
from se_deploy.quantization import fp16_ranges, to_fp16
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Arrays
    from se_deploy.quantization import Fp16
    from se_deploy.quantization.fp16_ranges import Ranges
    from se_deploy.verification import Probe

_SAMPLES = 16  # of the user's data, evenly spread: a largest value grows slowly with more
_BATCH = 4


def half(
    model: ir.Model,
    *,
    io: Literal["fp32", "fp16"] = "fp32",
    samples: Samples | None = None,
    probes: Sequence[Probe] | None = None,
) -> Fp16:
    """Return `model` in FP16; what `samples` and `probes` drive out of FP16's range stays in FP32.

    `probes` are inputs that the graph accepts; chosen where None.
    """
    return to_fp16(model, io=io, ranges=ranges(model, samples, probes))


def ranges(
    model: ir.Model, samples: Samples | None = None, probes: Sequence[Probe] | None = None
) -> Ranges | None:
    """Return the ranges of an FP32 graph's tensors; None where nothing can be fed to it."""
    seen = [
        (probe.kind, feeds)
        for probe in (made_up(model) if probes is None else probes)
        for feeds in _taken(model, probe.feeds)
    ]
    if samples is not None:
        seen += [("data", feeds) for feeds in _batches(model, samples)]
    if not seen:
        return None
    kinds, batches = zip(*seen, strict=True)
    return fp16_ranges.measure(model, batches, registry.graph_runtime(SessionOptions(lean=True)), kinds=kinds)


def made_up(model: ir.Model) -> tuple[Probe, ...]:
    """Return noise and extremes that `model` accepts; none where it accepts no size that is tried."""
    with registry.graph_runtime(SessionOptions(lean=True)).open(model) as session:
        try:
            return verification.choose(model, session, image=input_spec.read(model.metadata_props))
        except UnsupportedGraph:  # the ranges then say that they were not measured on any
            return ()


def _taken(model: ir.Model, feeds: Arrays) -> Iterator[Arrays]:
    """Yield `feeds` as the graph takes them: a frozen one takes its own number of samples at a time."""
    size = calibration.frozen_batch(model)
    if not size or batching.rows(feeds) == size:
        yield feeds
        return
    yield from (part for part, _ in batching.sliced(feeds, size))


def _batches(model: ir.Model, samples: Samples) -> Iterator[Arrays]:
    """Yield up to _SAMPLES samples in batches that the graph takes."""
    frozen = calibration.frozen_batch(model)
    size = frozen or _BATCH
    count = min(samples.count, max(_SAMPLES, size))
    some = samples.take([i * samples.count // count for i in range(count)])
    for feeds in some.batches(size):
        if not frozen or batching.rows(feeds) == size:  # a frozen graph takes whole batches only
            yield feeds
