"""`profile`: latency is measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli import remote as elsewhere
from se_deploy.cli.parameters import arguments, command, defaulted, either, group, optional, repeated
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, Model, Number

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.commands.remote import Remote
    from se_deploy.options import HostOptions, NetworkOptions, TimingOptions


_cuda_graph = either(
    "--cuda-graph/--no-cuda-graph", "Time an engine's calls as replays of a CUDA graph, or launch by launch."
)
_HOST = group(
    "host",
    lambda given: dataclasses.replace(options.host.of(given), cuda_graph=_cuda_graph.of(given)),
    options.host,
    _cuda_graph,
    section=Section.TIMING,
)
_streams = defaulted(
    "--streams", click.IntRange(min=1), 1, "Copies of an engine that share the GPU, for their throughput."
)
_TIMING = group(
    "timing",
    lambda given: dataclasses.replace(options.sized_timing.of(given), streams=_streams.of(given)),
    options.sized_timing,
    _streams,
    section=Section.TIMING,
)


@command(
    "profile",
    arguments("files", IN_FILE),
    optional("--reference", Model(), "Network to compare with, as timm:NAME.", section=Section.TIMING),
    repeated(
        "--batch-size batch_sizes",
        click.IntRange(min=1),
        "Images a call, 1 where nothing is said; repeatable, each is timed.",
        section=Section.TIMING,
    ),
    optional(
        "--max-p50-ms",
        Number(),
        "With --gate latency: the slowest median that passes.",
        section=Section.LIMITS,
    ),
    optional(
        "--min-speedup",
        Number(),
        "With --gate latency: the least speed-up that passes.",
        section=Section.LIMITS,
    ),
    options.timed_network,
    _TIMING,
    _HOST,
    elsewhere.remote,
    options.reporter("latency"),
    first="--reference --batch-size --threads --duration-s --min-speedup "
    "--max-p50-ms --gate --pretrained --input-size --json",
    inert=options.of_export,
)
def profile(
    files: tuple[Path, ...],
    reference: str | None,
    batch_sizes: tuple[int, ...],
    max_p50_ms: float | None,
    min_speedup: float | None,
    network: NetworkOptions,
    timing: TimingOptions,
    host: HostOptions,
    remote: Remote | None,
    reporter: Reporter,
) -> None:
    """Measure the latency of ONNX files and engines, and the speed-up over PyTorch.

    An ONNX file runs in ONNX Runtime on the CPU, an engine on its GPU. Warm-up, duration and percentiles
    are those of trtexec, so that figures can be compared. An engine's time is the device's own: launches,
    copies and the whole way from host arrays to host arrays are reported apart.

    \b
    Example:
        se-deploy profile net.onnx --reference timm:seresnet50 --threads 1
    """
    from se_deploy.commands import profile as verb
    from se_deploy.schema import results
    from se_deploy.tables import measurements

    if remote is not None:
        elsewhere.finish(remote, results.Profile, measurements.profiled, reporter)
        return
    with reporter.progress() as progress:
        result = verb.profile(
            files,
            reference=reference,
            batch=batch_sizes[0] if len(batch_sizes) == 1 else 1,
            batches=batch_sizes if len(batch_sizes) > 1 else (),
            host=host,
            timing=timing,
            network=network,
            progress=progress,
        )
    payload = verb.to_schema(result)
    limited = max_p50_ms is not None or min_speedup is not None
    reporter.finish(
        payload,
        measurements.profiled(payload),
        warnings=result.warnings,
        verdicts={"latency": result.failures(max_p50_ms=max_p50_ms, min_speedup=min_speedup)},
        unjudged={} if limited else {"latency": "no limit was given with --max-p50-ms or --min-speedup"},
    )
