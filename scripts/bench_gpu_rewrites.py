"""Time every exact rewrite on a real GPU: what the plan promises in bytes against what the clock says.

    python scripts/bench_gpu_rewrites.py [--networks timm:seresnet50,timm:efficientnet_b0]
        [--runtimes tensorrt-rtx,tensorrt] [--batches 1,8] [--target NAME] [--rounds 15] [--calls 50]
        [--search-plans 60] [--output FILE.json]

Each variant is the FP16 network with one kind of rewrite wherever it is possible, or with what the search
chose ("searched"), built by each runtime for the GPU at hand. Variants are timed in rounds, in another order
every round, so that a drifting clock hits all alike. Printed: the median of the rounds' medians, and the
ratio to the network without rewrites with its 95 % bootstrap interval over rounds. Fix the clocks first
(`nvidia-smi -lgc`, `nvpmodel -m 0; jetson_clocks`). `--runtimes onnxruntime` times FP32 files on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt import gpu
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.backends.tensorrt.session import TrtRuntime
from se_deploy.commands import source
from se_deploy.errors import SeDeployError
from se_deploy.options import NetworkOptions
from se_deploy.passes import rewrites, search
from se_deploy.quantization import to_fp16
from se_deploy.targets import resolve_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import onnx_ir as ir

    from se_deploy.commands.source import Source
    from se_deploy.protocols import Session

NETWORKS = "timm:seresnet50,timm:mobilenetv3_small_100,timm:efficientnet_b0,timm:ese_vovnet19b_dw"
NEEDS = {
    "gate-into-previous": ("hoist-squeeze-1x1", "hoist-squeeze-kxk"),
    "excite-as-sum": ("squeeze-average-pool", "gate-into-next-batched"),
    "gate-into-next": ("squeeze-average-pool",),
    "gate-into-next-batched": ("squeeze-average-pool",),
}
"""What a rewrite builds on: it is timed together with these."""

BOOTSTRAP, SEED = 2000, 0


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of one network on one runtime at one batch."""

    network: str
    runtime: str
    batch: int
    variant: str
    places: int
    kernels: int | None  # planned; None where the runtime says nothing
    activation_bytes: int | None
    p50_ms: float
    ratio: float  # to the network without rewrites
    low: float  # 95 % interval of the ratio
    high: float


def main() -> int:
    """Time everything and print the table."""
    options = _arguments()
    rows: list[Row] = []
    for spec in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            taken = source.read(spec, options=NetworkOptions(batch=batch))
            for runtime in options.runtimes.split(","):
                try:
                    found = list(time_variants(taken, runtime, batch, options))
                except SeDeployError as e:
                    print(f"{spec} on {runtime}: {e.message}\n  {e.hint}", file=sys.stderr)
                    return 1
                rows += found
                for row in found:
                    _print(row)
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def variants(taken: Source, runtime: str, options: argparse.Namespace) -> Iterator[tuple[str, int, ir.Model]]:
    """Return name, number of places and FP32 graph: without rewrites, with each kind, and as searched."""
    blocks = taken.census.se
    yield "none", 0, taken.model
    computed = {r.name for r in rewrites.rewriters() if r.run_time_weights}
    for name in rewrites.names():
        if runtime == "onnxruntime" and name in computed:
            continue
        choices = search.everywhere(taken.model, blocks, (*NEEDS.get(name, ()), name))
        done = search.replay(taken.model, blocks, choices)
        places = sum(choice.rewrite == name for choice in done.applied)
        if places:
            yield name, places, done.model
    if runtime == "tensorrt-rtx":
        planner = start_planner(runtime, resolve_target(options.target))
        try:
            best = search.optimize(
                taken.model,
                blocks,
                rewrites.names(),
                planner=planner,
                goal=search.Goal(lower=lambda model: to_fp16(model).model, budget_plans=options.search_plans),
            )
        finally:
            planner.close()
        yield "searched", len(best.choices), best.model


def time_variants(taken: Source, runtime: str, batch: int, options: argparse.Namespace) -> Iterator[Row]:
    """Build every variant, then time them in rounds whose order rotates."""
    made, plans = [], []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions: list[Session] = []
        for name, places, model in variants(taken, runtime, options):
            made.append((name, places))
            if runtime == "onnxruntime":
                plans.append(None)
                sessions.append(stack.enter_context(OrtRuntime(threads=1).open(model)))
                continue
            compiler = stack.enter_context(contextlib.closing(Compiler(runtime)))
            built = compiler.build(
                to_fp16(model).model, BuildOptions(targets=(resolve_target(options.target),))
            )
            plans.append(built.plan)
            path = folder / f"{len(made)}.engine"
            path.write_bytes(built.data)
            sessions.append(stack.enter_context(TrtRuntime(runtime).open(path)))
        medians = np.array([_round(sessions, turn, options.calls) for turn in range(options.rounds)])
    for i, (name, places) in enumerate(made):
        low, high = _interval(medians[:, i] / medians[:, 0])
        plan = plans[i]
        yield Row(
            taken.spec,
            runtime,
            batch,
            name,
            places,
            None if plan is None else plan.kernels,
            None if plan is None else plan.activation_bytes,
            float(np.median(medians[:, i])),
            float(np.median(medians[:, i] / medians[:, 0])),
            low,
            high,
        )


def _round(sessions: list[Session], turn: int, calls: int) -> list[float]:
    """Return each session's median in ms; the first to be timed moves on by one every round."""
    found = [0.0] * len(sessions)
    for k in range(len(sessions)):
        i = (k + turn) % len(sessions)
        feeds = {spec.name: _noise(tuple(d or 1 for d in spec.dims)) for spec in sessions[i].inputs}
        sessions[i].time(feeds, max(3, calls // 10))
        found[i] = float(np.median(sessions[i].time(feeds, calls)))
    return found


def _noise(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def _interval(ratios: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile bootstrap of the median."""
    draw = np.random.default_rng(SEED).choice(ratios, (BOOTSTRAP, len(ratios)))
    low, high = np.percentile(np.median(draw, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _print(row: Row) -> None:
    planned = (
        "" if row.kernels is None else f"{row.kernels:4} kernels {(row.activation_bytes or 0) / 1e6:8.2f} MB"
    )
    print(
        f"{row.network:32} {row.runtime:13} batch {row.batch:2} {row.variant:26} x{row.places:<3} {planned} "
        f"{row.p50_ms:8.3f} ms  {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="specs, comma-separated")
    parser.add_argument("--runtimes", default="tensorrt-rtx,tensorrt")
    parser.add_argument("--batches", default="1,8")
    here = gpu.here()
    default = "sm86" if here is None else f"sm{here.sm}"
    parser.add_argument("--target", default=default, help="what engines are built for; default: the GPU here")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=50, help="per variant and round")
    parser.add_argument("--search-plans", type=int, default=60)
    parser.add_argument("--output", help="write the rows as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
