"""Compare INT8 of se-deploy with ONNX Runtime's quantize_static: error, share of MACs, time and memory.

Every row is made in a process of its own, from the same ONNX file and the same calibration data; errors are
those of the Q/DQ graph on other data, run by ONNX Runtime with its optimizations off.

    python scripts/bench_ptq.py                  # the two digit networks
    python scripts/bench_ptq.py --all            # and two of timm, with seeded weights
    python scripts/bench_ptq.py --cost 5         # time and memory against the entropy calibrator, in turn
    python scripts/bench_ptq.py --growth         # the whole command's memory on 64 and on 512 images
    python scripts/bench_ptq.py --own net.onnx calibration.npy test.npy   # a network and data of your own
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "calibration"
THEIRS = ("minmax", "percentile", "entropy")
OURS = ("se-deploy", "se-deploy 10 % float")
REQUIRED_DB = {"se-deploy": 5.0, "se-deploy 10 % float": 10.0}
KEEP = 0.1
PER_CHANNEL_OPSET = 13
COST_OF = "MobileNetV3-small, seeded"
COMMAND = "se-deploy quantize"  # the whole of it, imports included
FEW_IMAGES, MANY_IMAGES, MOST_GROWTH = 64, 512, 1.1
MOST_TIME, MOST_MEMORY = 1 / 3, 1 / 4  # of ONNX Runtime's entropy calibrator, on that network
IMAGES = 128
TEST_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """A network of the benchmark."""

    name: str
    spec: str
    checkpoint: str | None  # in calibration/; None: seeded weights, reported without a bound
    theirs: tuple[str, ...] = THEIRS
    images: int = IMAGES


SUBJECTS = (
    Subject("SE-ResNet-20, digits", "se_deploy:se_resnet20", "se_resnet20_digits.safetensors"),
    Subject("MobileNetV3, digits", "se_deploy:mobilenet_digits", "mobilenet_digits.safetensors"),
    Subject("MobileNetV3-small, seeded", "timm:mobilenetv3_small_100", None),
    Subject("SE-ResNet-50, seeded", "timm:seresnet50", None, ("minmax",), 32),
)


def export(subject: Subject, folder: Path) -> None:
    """Write network.onnx, calibration.npy and test.npy into `folder`."""
    from se_deploy import graph  # noqa: PLC0415 - torch: not in a worker
    from se_deploy.frontend import simplify, torch_export, zoo  # noqa: PLC0415 - torch: not in a worker
    from se_deploy.passes import canonical  # noqa: PLC0415

    digits = subject.checkpoint is not None
    network = zoo.load(
        subject.spec,
        checkpoint=DIGITS / subject.checkpoint if subject.checkpoint else None,
        model_args={"num_classes": 10, "in_channels": 1} if digits else None,
    )
    made = simplify.simplify(torch_export.export(network).model).model
    graph.save(canonical.canonicalize(made).model, folder / "network.onnx")
    if network.image is None:
        raise click.ClickException(f"{subject.spec} takes no images")
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (network.image.mean, network.image.std))
    for name, file, count, seed in (
        ("calibration", "calibration", subject.images, 0),
        ("test", "heldout", TEST_IMAGES if digits else 32, 1),
    ):
        pixels = _digits(file)[:count] if digits else _clouds(count, network.image.shape, seed)
        np.save(folder / f"{name}.npy", (pixels - mean) / std)


def bring(files: tuple[Path, Path, Path], folder: Path) -> None:
    """Put a network and its data where `export` would; per-channel Q/DQ needs operator set 13."""
    import onnx  # noqa: PLC0415 - as above
    from onnx import version_converter  # noqa: PLC0415 - as above

    proto = onnx.load(files[0])
    if proto.opset_import[0].version < PER_CHANNEL_OPSET:
        proto = version_converter.convert_version(proto, PER_CHANNEL_OPSET)
    onnx.save(proto, folder / "network.onnx")
    for name, file in zip(("calibration", "test"), files[1:], strict=True):
        shutil.copy(file, folder / f"{name}.npy")


def _digits(name: str) -> Array:
    data = gzip.decompress((DIGITS / f"{name}-images-idx3-ubyte.gz").read_bytes())
    count, height, width = np.frombuffer(data, ">u4", 3, 4)
    return np.frombuffer(data, np.uint8, -1, 16).reshape(count, 1, height, width) / np.float32(255)


def _clouds(count: int, shape: tuple[int, int, int], seed: int) -> Array:
    """Make images with the spectrum of photographs (amplitude 1/f), in [0, 1]."""
    random = np.random.default_rng(seed)
    channels, height, width = shape
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width))
    noise = np.fft.rfft2(random.standard_normal((count, channels, height, width))) * falloff
    images = np.fft.irfft2(noise, s=(height, width))
    images /= np.abs(images).max(axis=(2, 3), keepdims=True)
    return (images * 0.5 + 0.5).astype(np.float32)


def quantize_theirs(folder: Path, method: str, output: Path) -> float:
    """Run quantize_static, symmetric and per channel; give the seconds."""
    import onnx  # noqa: PLC0415 - only this worker needs it
    from onnxruntime import quantization as q  # noqa: PLC0415 - as above

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            data = np.load(folder / "calibration.npy", mmap_mode="r")
            self.rows = iter([data[i : i + 1] for i in range(len(data))])

        def get_next(self) -> dict[str, Array] | None:
            row = next(self.rows, None)
            return None if row is None else {name: np.ascontiguousarray(row)}

    name = onnx.load(folder / "network.onnx").graph.input[0].name
    kind = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[method]
    start = time.perf_counter()
    q.quantize_static(
        str(folder / "network.onnx"),
        str(output),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QInt8,
        weight_type=q.QuantType.QInt8,
        calibrate_method=q.CalibrationMethod[kind],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return time.perf_counter() - start


def quantize_ours(folder: Path, keep: float | None, output: Path) -> float:
    """Run se-deploy's quantize; give the seconds."""
    from se_deploy import data, graph, quantization  # noqa: PLC0415 - counted to this worker's memory
    from se_deploy.backends.onnxruntime.session import OrtRuntime  # noqa: PLC0415 - as above
    from se_deploy.protocols import TensorSpec  # noqa: PLC0415 - as above

    start = time.perf_counter()  # imports are not counted, as they are not for quantize_static
    model = graph.load(folder / "network.onnx")
    specs = [TensorSpec(v.name or "", np.dtype(np.float32), graph.dims(v) or ()) for v in model.graph.inputs]
    samples = data.read(folder / "calibration.npy", specs)
    made = quantization.quantize(
        model,
        samples,
        runtime=OrtRuntime(threads=1, optimize=False),
        fast=OrtRuntime(threads=1, lean=True),
        options=quantization.QuantizeOptions(float_macs=keep),
    )
    graph.save(made.model, output)
    return time.perf_counter() - start


def judge(folder: Path, output: Path) -> dict[str, Any]:
    """Compare a Q/DQ file with the float network on the test data, and count what is INT8 in it."""
    from se_deploy import graph  # noqa: PLC0415 - as above
    from se_deploy.backends.onnxruntime.session import OrtRuntime  # noqa: PLC0415 - as above

    runtime = OrtRuntime(threads=1, optimize=False)
    images = np.load(folder / "test.npy")
    noise = power = 0.0
    with runtime.open(folder / "network.onnx") as exact, runtime.open(output) as rounded:
        for start in range(0, len(images), 8):
            feeds = {exact.inputs[0].name: images[start : start + 8]}
            got = rounded.run(feeds)
            for name, wanted in exact.run(feeds).items():
                noise += float(((wanted - got[name]).astype(np.float64) ** 2).sum())
                power += float((wanted.astype(np.float64) ** 2).sum())
    return {"sqnr_db": 10 * np.log10(power / max(noise, 1e-30)), **count(graph.load(output))}


def count(model: ir.Model) -> dict[str, Any]:
    """Return the share of convolution and FC MACs whose two operands are dequantized, and the zero points."""
    from se_deploy import graph  # noqa: PLC0415 - as above

    whole = inside = 0
    zero = True
    for node in model.graph:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            from_int8 = [
                v is not None and (p := v.producer()) is not None and p.op_type == "DequantizeLinear"
                for v in node.inputs[:2]
            ]
            if graph.constant(node.inputs[1]) is None and not from_int8[1]:
                continue
            whole += graph.macs(node)
            inside += graph.macs(node) * all(from_int8)
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and len(node.inputs) > 2:  # noqa: PLR2004 - (x, scale, zero point)
            points = graph.constant(node.inputs[2])
            zero = zero and points is not None and not points.any()
    return {"macs_int8": inside / max(1, whole), "zero_points_0": zero}


def peak_mb() -> float:
    """Return the largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(folder: Path, how: str) -> None:
    """Be the process of one row: print its figures as JSON."""
    if how == COMMAND:
        from se_deploy.cli import main as command  # noqa: PLC0415 - counted to this worker's memory

        words = ["network.onnx", "--calib-data", "many.npy", "-o", "out.onnx", "--overwrite", "-q"]
        os.chdir(folder)
        command(["quantize", *words], standalone_mode=False)
        print(json.dumps({"peak_mb": peak_mb()}))
        return
    output = folder / f"{how.split(maxsplit=1)[0]}.onnx"
    if how in THEIRS:
        seconds = quantize_theirs(folder, how, output)
    else:
        seconds = quantize_ours(folder, KEEP if how == OURS[1] else None, output)
    peak = peak_mb()
    print(json.dumps({"seconds": seconds, "peak_mb": peak, **judge(folder, output)}))


def measure(folder: Path, how: str) -> dict[str, Any]:
    """Make one row in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(folder), how], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{how}: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def cost(rounds: int) -> bool:
    """Compare time and memory with the entropy calibrator's, in turn; tell whether the bounds hold."""
    subject = next(s for s in SUBJECTS if s.name == COST_OF)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(subject, folder)
        pairs = []
        for _ in range(rounds):
            theirs, ours = measure(folder, "entropy"), measure(folder, OURS[0])
            pairs.append((theirs["seconds"], ours["seconds"], theirs["peak_mb"], ours["peak_mb"]))
            click.echo("entropy {:.2f} s, se-deploy {:.2f} s; {:.0f} MB, {:.0f} MB".format(*pairs[-1]))
    table = np.array(pairs)
    time_share = float(np.median(table[:, 1] / table[:, 0]))
    memory_share = float(np.median(table[:, 3] / table[:, 2]))
    click.echo(
        f"{subject.name}, {subject.images} images: {time_share:.3f} of the time (median of {rounds} "
        f"pairs, at most {MOST_TIME:.3f}), {memory_share:.3f} of the memory (at most {MOST_MEMORY})"
    )
    return time_share <= MOST_TIME and memory_share <= MOST_MEMORY


def growth() -> bool:
    """Run `se-deploy quantize` on few and on many images; tell whether its peak memory stays."""
    subject = next(s for s in SUBJECTS if s.name == COST_OF)
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(subject, folder)
        some = np.load(folder / "calibration.npy")[:FEW_IMAGES]
        for count in (FEW_IMAGES, MANY_IMAGES):
            dimmer = np.linspace(1, 0.5, count // FEW_IMAGES, dtype=np.float32)
            np.save(folder / "many.npy", np.concatenate([some * share for share in dimmer]))
            start = time.perf_counter()
            peaks[count] = measure(folder, COMMAND)["peak_mb"]
            click.echo(f"{count} images: {time.perf_counter() - start:.1f} s, {peaks[count]:.0f} MB")
    share = peaks[MANY_IMAGES] / peaks[FEW_IMAGES]
    click.echo(f"{share:.2f} times the memory (at most {MOST_GROWTH})")
    return share <= MOST_GROWTH


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also the networks with seeded weights.")
@click.option("--only", default="", help="Networks whose name holds this.")
@click.option("--cost", "rounds", type=int, default=0, help="Only compare time and memory, so many times.")
@click.option("--growth", "grow", is_flag=True, help="Only compare memory on few and on many images.")
@click.option(
    "--own",
    nargs=3,
    default=None,
    type=click.Path(exists=True, path_type=Path),
    help="NET.onnx CALIB.npy TEST.npy",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--worker", nargs=2, hidden=True, default=None)
def main(  # noqa: PLR0917 - click passes them by name
    everything: bool,
    only: str,
    rounds: int,
    grow: bool,
    own: tuple[Path, Path, Path] | None,
    as_json: bool,
    worker: tuple[str, str] | None,
) -> None:
    """Print the table; exit with 1 where a bound is missed."""
    if worker:
        work(Path(worker[0]), worker[1])
        return
    if rounds or grow:
        sys.exit(0 if (growth() if grow else cost(rounds)) else 1)
    rows: list[dict[str, Any]] = []
    for subject in (Subject(own[0].stem, "", None),) if own else SUBJECTS:
        if not (own or everything or subject.checkpoint or only) or only not in subject.name:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bring(own, folder) if own else export(subject, folder)
            for how in (*subject.theirs, *OURS):
                row = {"network": subject.name, "how": how, **measure(folder, how)}
                rows.append(row)
                if not as_json:
                    click.echo(line(row))
    failed = [text for subject in SUBJECTS if subject.checkpoint for text in missed(subject.name, rows)]
    if as_json:
        click.echo(json.dumps({"rows": rows, "missed": failed}))
    for text in failed:
        click.echo(text, err=True)
    sys.exit(1 if failed else 0)


def line(row: dict[str, Any]) -> str:
    """Lay out one row."""
    zero = "0" if row["zero_points_0"] else "not 0"
    return (
        f"{row['network']:27} {row['how']:21} {row['sqnr_db']:6.1f} dB  {row['macs_int8']:6.1%} INT8  "
        f"zero points {zero}  {row['seconds']:7.1f} s  {row['peak_mb']:6.0f} MB"
    )


def missed(network: str, rows: list[dict[str, Any]]) -> list[str]:
    """Name the bounds that a trained network's rows miss."""
    mine = {row["how"]: row for row in rows if row["network"] == network}
    if not mine:
        return []
    best = max(mine[how]["sqnr_db"] for how in THEIRS)
    failed = [
        f"{network}: {how} is {mine[how]['sqnr_db'] - best:.1f} dB above ONNX Runtime's best, not {wanted}"
        for how, wanted in REQUIRED_DB.items()
        if mine[how]["sqnr_db"] - best < wanted
    ]
    if mine[OURS[0]]["macs_int8"] < 0.95:  # noqa: PLR2004 - the portable form's promise
        failed.append(f"{network}: only {mine[OURS[0]]['macs_int8']:.1%} of the MACs are INT8")
    return failed


if __name__ == "__main__":
    main()
