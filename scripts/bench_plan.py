"""Plan ten SE networks with TensorRT-RTX, as exported today and as this tool exports them; needs no GPU.

    python scripts/bench_plan.py [--networks a,b] [--batches dynamic,1] [--target sm86] [--cache DIR]
                                 [--search-plans N] [--ort] [--output FILE.json]

Weights are random from a seed, BatchNorm statistics too. Baseline: TorchScript exporter, opset 17, onnxsim,
FP16 by onnxconverter-common, planned at the same batch. Ours: the file that `se-deploy export timm:NAME
--fp16 --runtime tensorrt-rtx --target sm86 --batch B` writes. Figures are planned bytes and kernels per
image, not times. --ort takes the CPU time of the FP32 files on ONNX Runtime instead. Exits with 1 where a
requirement is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.commands.export import ExportResult, export
from se_deploy.options import NetworkOptions, RewriteOptions, TargetOptions
from se_deploy.targets import resolve_target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from se_deploy.protocols import Arrays, Planner

SEED = 0
OPSET = 17  # of the baseline: what TorchScript users write
NETWORKS = {
    "seresnet50": 224, "seresnext50_32x4d": 224, "seresnet18": 224, "mobilenetv3_small_100": 224,
    "efficientnet_b0": 224, "regnety_008": 224, "rexnet_100": 224, "ghostnet_100": 224,
    "ese_vovnet19b_dw": 224, "tf_efficientnetv2_b0": 192,
}  # fmt: skip
REQUIRED = {
    ("seresnet50", "dynamic"): 0.72, ("seresnet50", "1"): 0.60,
    ("efficientnet_b0", "dynamic"): 0.91, ("efficientnet_b0", "1"): 0.77,
    ("mobilenetv3_small_100", "dynamic"): 0.86, ("mobilenetv3_small_100", "1"): 0.79,
}  # fmt: skip
REQUIRED_MEAN = {"dynamic": 0.88, "1": 0.81}
MOST_ERROR = 1e-5  # of the output's range, FP32 against PyTorch
SLOWER = {True: 1.02, False: 1.05}  # ONNX Runtime: largest ratio for networks over and under SLOW_MS
SLOW_MS = 20.0
SESSIONS, CALLS, WARM_UP = 5, 20, 3

PACKAGES = ("tensorrt-rtx", "torch", "timm", "onnx", "onnxsim", "onnxconverter-common", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one batch."""

    network: str
    batch: str
    kernels_before: int
    kernels: int
    bytes_before: int
    bytes: int
    error: float  # FP32 rewritten against PyTorch, of the output's range
    rewrites: dict[str, int]
    seconds: float

    @property
    def ratio(self) -> float:
        """Planned bytes over the baseline's."""
        return self.bytes / self.bytes_before


@dataclass(frozen=True, slots=True)
class Timing:
    """One network on ONNX Runtime's CPU provider."""

    network: str
    before_ms: float
    ms: float

    @property
    def ratio(self) -> float:
        """Our median over the baseline's."""
        return self.ms / self.before_ms


def main() -> int:
    """Run the benchmark and print its table."""
    options = _arguments()
    folder = Path(options.cache)
    folder.mkdir(parents=True, exist_ok=True)
    names = options.networks.split(",") if options.networks else list(NETWORKS)
    print(f"# {' '.join(['python', *sys.argv])}")
    print("# " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    if options.ort:
        timings = [time_on_cpu(name, folder) for name in names]
        return _judge_timings(timings)
    planner = start_planner("tensorrt-rtx", resolve_target(options.target), folder / "plans")
    try:
        rows = []
        for batch in options.batches.split(","):
            for name in names:
                rows.append(plan_both(name, batch, folder, planner, options))
                _print(rows[-1])
    finally:
        planner.close()
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return _judge(rows)


def plan_both(name: str, batch: str, folder: Path, planner: Planner, options: argparse.Namespace) -> Row:
    """Plan the baseline and our file for one network and batch."""
    start = time.monotonic()
    before = planner.plan(graph.load(baseline(name, batch, folder, fp16=True)))
    path = folder / f"{name}.{batch}.{options.target}.fp16.onnx"
    done = exported(name, path, batch, target=options.target, plans=options.search_plans)
    after = planner.plan(graph.load(path))
    count: dict[str, int] = {}
    for choice in done.lowered.found.choices if done.lowered.found else ():
        count[choice.rewrite] = count.get(choice.rewrite, 0) + 1
    check = done.source.check
    error = check.verify(done.lowered.rewritten, "rewrites").max_rel_error if check else None
    return Row(
        name,
        batch,
        before.kernels,
        after.kernels,
        before.activation_bytes,
        after.activation_bytes,
        math.nan if error is None else error,
        count,
        time.monotonic() - start,
    )


def exported(
    name: str, path: Path, batch: str, *, target: str | None = None, plans: int | None = None
) -> ExportResult:
    """Do what `se-deploy export` does: FP16 for `target`, or FP32 for ONNX Runtime without one."""
    network = NetworkOptions(
        checkpoint=checkpoint(name, path.parent),
        input_size=(3, NETWORKS[name], NETWORKS[name]),
        batch=None if batch == "dynamic" else int(batch),
    )
    rewrites = RewriteOptions() if plans is None else RewriteOptions(search_plans=plans)
    return export(
        f"timm:{name}",
        path,
        precision="fp16" if target else "fp32",
        target=TargetOptions(
            "tensorrt-rtx" if target else "onnxruntime", (resolve_target(target),) if target else (), rewrites
        ),
        network=network,
        overwrite=True,
    )


def network(name: str) -> nn.Module:
    """Make a network with seeded random weights and BatchNorm statistics."""
    import timm  # noqa: PLC0415 - planning what is cached needs neither
    import torch  # noqa: PLC0415

    torch.manual_seed(SEED)
    module: nn.Module = timm.create_model(name, pretrained=False).eval()
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - every dimension's
                part.running_mean.copy_(0.1 * torch.randn(part.running_mean.shape, generator=draw))
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=draw))
                part.weight.copy_(0.75 + 0.5 * torch.rand(part.weight.shape, generator=draw))
                part.bias.copy_(0.1 * torch.randn(part.bias.shape, generator=draw))
    return module


def checkpoint(name: str, folder: Path) -> Path:
    """Write the network's state once."""
    path = folder / f"{name}.pth"
    if not path.exists():
        import torch  # noqa: PLC0415 - see `network`

        torch.save(network(name).state_dict(), path)
    return path


def baseline(name: str, batch: str, folder: Path, *, fp16: bool) -> Path:
    """Write what a user has today, once: TorchScript, onnxsim, and FP16 by onnxconverter-common."""
    path = folder / f"{name}.{batch}.baseline{'.fp16' if fp16 else ''}.onnx"
    if path.exists():
        return path
    import onnx  # noqa: PLC0415 - see `network`
    import onnxsim  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from onnxconverter_common import float16  # noqa: PLC0415

    module = network(name)
    module.load_state_dict(torch.load(checkpoint(name, folder), weights_only=True))
    image: torch.Tensor = torch.zeros(
        2 if batch == "dynamic" else int(batch), 3, NETWORKS[name], NETWORKS[name]
    )
    free: dict[str, Any] = (
        {"dynamic_axes": {"input": {0: "N"}, "output": {0: "N"}}} if batch == "dynamic" else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of the very exporter that the baseline is about
        torch.onnx.export(
            module, (image,), str(path), opset_version=OPSET, dynamo=False, input_names=["input"],
            output_names=["output"], **free,
        )  # fmt: skip
        model, _ = onnxsim.simplify(onnx.load(path))
        if fp16:
            model = float16.convert_float_to_float16(model, keep_io_types=True)
    onnx.save(model, path)
    return path


def time_on_cpu(name: str, folder: Path) -> Timing:
    """Time the baseline's FP32 file and ours, several sessions of each, in turn and the order swapped."""
    before = baseline(name, "dynamic", folder, fp16=False)
    ours = folder / f"{name}.onnxruntime.onnx"
    exported(name, ours, "dynamic")
    image = np.random.default_rng(SEED).standard_normal((1, 3, NETWORKS[name], NETWORKS[name]))
    medians: dict[Path, list[float]] = {before: [], ours: []}
    for turn in range(SESSIONS):
        for path in (before, ours) if turn % 2 == 0 else (ours, before):
            medians[path].append(_median(path, image.astype(np.float32)))
    row = Timing(name, min(medians[before]), min(medians[ours]))
    print(f"{row.network:24} {row.before_ms:8.2f} -> {row.ms:8.2f} ms  {row.ratio:.3f}", flush=True)
    return row


def _median(path: Path, image: np.ndarray[Any, Any]) -> float:
    """CPU time of one call in ms, one thread: wall time of a quiet machine, and steady on a busy one."""
    with OrtRuntime(threads=1).open(path) as session:
        feeds: Arrays = {session.inputs[0].name: image}
        times = []
        for _ in range(WARM_UP + CALLS):
            start = time.thread_time()
            session.run(feeds)
            times.append(time.thread_time() - start)
    return 1e3 * float(np.median(times[WARM_UP:]))


def _print(row: Row) -> None:
    used = ", ".join(f"{name} {count}" for name, count in row.rewrites.items())
    print(
        f"{row.network:24} {row.batch:8} {row.bytes_before / 1e6:7.2f} -> {row.bytes / 1e6:7.2f} MB "
        f"{row.ratio:.3f}  {row.kernels_before:4} -> {row.kernels:4} kernels  error {row.error:.1e}  "
        f"{row.seconds:4.0f} s  {used}",
        flush=True,
    )


def _judge(rows: list[Row]) -> int:
    """Print the means and what is missed; 1 where something is."""
    missed = []
    for row in rows:
        limit = min(1.0, REQUIRED.get((row.network, row.batch), 1.0))
        if row.ratio > limit or row.kernels > row.kernels_before or row.error > MOST_ERROR:
            missed.append(f"{row.network} at batch {row.batch}: {row.ratio:.3f}, {limit} is required")
    for batch in dict.fromkeys(row.batch for row in rows):
        ratios = [row.ratio for row in rows if row.batch == batch]
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean of {len(ratios)}, batch {batch}: {mean:.3f}, worst {max(ratios):.3f}")
        if len(ratios) == len(NETWORKS) and mean > REQUIRED_MEAN.get(batch, 1.0):
            missed.append(f"geometric mean at batch {batch}: {mean:.3f}")
    print("\n".join(f"MISSED {text}" for text in missed) or "all requirements met")
    return int(bool(missed))


def _judge_timings(timings: list[Timing]) -> int:
    slow = [row for row in timings if row.ratio > SLOWER[row.before_ms > SLOW_MS]]
    print("\n".join(f"SLOWER {row.network}: {row.ratio:.3f}" for row in slow) or "never slower")
    return int(bool(slow))


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "absent"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", help="comma-separated; all ten without it")
    parser.add_argument("--batches", default="dynamic,1")
    parser.add_argument("--target", default="sm86")
    parser.add_argument("--cache", default=".bench_plan", help="where networks, files and plans are kept")
    parser.add_argument("--search-plans", type=int)
    parser.add_argument("--ort", action="store_true", help="time on ONNX Runtime's CPU provider instead")
    parser.add_argument("--output", help="write the rows as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
