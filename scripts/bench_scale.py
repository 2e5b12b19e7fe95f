"""Time and memory against size: nodes, bytes of external weights, images of a list, gates of one check.

    python scripts/bench_scale.py [--nodes 1000,2000,5000] [--megabytes 64,256] [--images 1000,10000]
        [--gates 8,64] [--json FILE] [--plot FILE.png]

Each size runs in a process of its own, whose peak memory is the system's figure for it. Time is that of the
processor, its own and the system's, which other work on the machine hardly moves. The exponent at the end of
a line is that of time against size between its first and its last row, n log n being about 1.1; ends with 1
where one is above 1.3 and the larger row takes seconds. Sizes of the long run stand in docs/robustness.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_EXPONENT = 1.3
"""n log n from 1,000 to 20,000 is n to the power of 1.12; what is above is not noise any more."""
SECONDS = 2.0  # below it, start-up and noise decide

_MEASURE = """
import resource, sys, time
{setup}
start = time.process_time()
{body}
seconds = time.process_time() - start
print(f"{{seconds}} {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}")
"""


def measured(setup: str, body: str, folder: Path) -> tuple[float, int]:
    """Return the processor's seconds for `body` in a process of its own, and that process's peak bytes."""
    code = _MEASURE.format(setup=setup, body=body)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


def chain(blocks: int, path: Path) -> None:
    """Write a chain of SE blocks of 8 channels, 10 nodes each."""
    import onnx  # noqa: PLC0415 - the child processes are what is measured
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    rng = np.random.default_rng(0)
    shapes = {"c": (8, 8, 3, 3), "a": (2, 8, 1, 1), "b": (8, 2, 1, 1)}
    nodes, weights, last = [], [], "x"
    for n in range(blocks):
        for name, shape in shapes.items():
            array = rng.standard_normal(shape).astype(np.float32) / 8
            weights.append(numpy_helper.from_array(array, f"{name}{n}"))
        nodes += [
            helper.make_node("Conv", [last, f"c{n}"], [f"y{n}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"y{n}"], [f"r{n}"]),
            helper.make_node("GlobalAveragePool", [f"r{n}"], [f"p{n}"]),
            helper.make_node("Conv", [f"p{n}", f"a{n}"], [f"h{n}"]),
            helper.make_node("Relu", [f"h{n}"], [f"u{n}"]),
            helper.make_node("Conv", [f"u{n}", f"b{n}"], [f"e{n}"]),
            helper.make_node("Sigmoid", [f"e{n}"], [f"s{n}"]),
            helper.make_node("Mul", [f"r{n}", f"s{n}"], [f"m{n}"]),
            helper.make_node("Add", [f"m{n}", last], [f"d{n}"]),
            helper.make_node("Relu", [f"d{n}"], [f"o{n}"]),
        ]
        last = f"o{n}"
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8, 8, 8]) for n in ("x", last)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def nodes(size: int, folder: Path) -> tuple[float, int]:
    """Read, count the blocks and canonicalize a graph of `size` nodes."""
    chain(size // 10, folder / "net.onnx")
    setup = (
        "from pathlib import Path\nfrom se_deploy import graph, se_blocks\n"
        "from se_deploy.passes import canonical"
    )
    body = (
        "model = canonical.canonicalize(graph.load(Path('net.onnx'))).model\n"
        f"assert len(se_blocks.detect(model).se) == {size // 10}"
    )
    return measured(setup, body, folder)


def megabytes(size: int, folder: Path) -> tuple[float, int]:
    """Read a graph whose weights are `size` MB beside it."""
    import onnx  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415

    weights = []
    for n in range(4):
        tensor = TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[size * 65_536])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", n * size * 262_144), ("length", size * 262_144)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size * 65_536]) for n in ("x", "y")]
    made = [helper.make_node("Sum", ["x", *(w.name for w in weights)], ["y"])]
    graph = helper.make_graph(made, "large", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    with (folder / "w.bin").open("wb") as file:
        file.truncate(size * 1_048_576)
    setup = "from pathlib import Path\nfrom se_deploy import graph"
    return measured(setup, "graph.load(Path('net.onnx'))", folder)


def images(size: int, folder: Path) -> tuple[float, int]:
    """Choose 64 of `size` images in a list, and read them."""
    from PIL import Image  # noqa: PLC0415

    for n in range(100):
        Image.effect_noise((32, 32), 40).convert("RGB").save(folder / f"{n}.png")
    (folder / "list.txt").write_text("".join(f"{n % 100}.png {n % 10}\n" for n in range(size)), "utf-8")
    setup = (
        "from pathlib import Path\nfrom se_deploy import data\n"
        "from se_deploy.schema.input_spec import InputSpec\n"
        "spec = InputSpec('x', 3, 32, 32, (0.0,) * 3, (1.0,) * 3)"
    )
    body = "assert sum(len(b['x']) for b in data.read(Path('list.txt'), [spec], limit=64).batches(8)) == 64"
    return measured(setup, body, folder)


def gates(size: int, folder: Path) -> tuple[float, int]:
    """Judge `size` precision and parity gates of one configuration."""
    chain(4, folder / "net.onnx")
    np.save(folder / "d.npy", np.random.default_rng(0).standard_normal((4, 8, 8, 8)).astype(np.float32))
    table = '[[parity]]\nreference = "net.onnx"\ncandidates = ["net.onnx"]\ndata = "d.npy"\n'
    (folder / "se-deploy.toml").write_text(table * size, "utf-8")
    setup = "from pathlib import Path\nfrom se_deploy.commands import check"
    body = "assert not check.check(check.read(Path('se-deploy.toml'))).failures"
    return measured(setup, body, folder)


SCALES: dict[str, Callable[[int, Path], tuple[float, int]]] = {
    "nodes": nodes, "megabytes": megabytes, "images": images, "gates": gates,
}  # fmt: skip
DEFAULTS = {"nodes": "1000,3000", "megabytes": "64,256", "images": "1000,10000", "gates": "4,16"}


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """Draw time and memory against size, both axes logarithmic: n is a straight line."""
    import matplotlib as mpl  # noqa: PLC0415 - for this alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name in dict.fromkeys(row["scale"] for row in rows):
        own = [row for row in rows if row["scale"] == name]
        sizes = [row["size"] for row in own]
        axes[0].loglog(sizes, [row["seconds"] for row in own], "o-", label=name)
        axes[1].loglog(sizes, [float(row["peak_bytes"]) / 2**20 for row in own], "o-", label=name)
    for ax, what in zip(axes, ("processor time, s", "peak memory, MiB"), strict=True):
        ax.set(xlabel="size", ylabel=what)
        ax.grid(visible=True, alpha=0.3)
        ax.legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run as the lines above say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, sizes in DEFAULTS.items():
        parser.add_argument(f"--{name}", default=sizes)
    parser.add_argument("--only", action="append", choices=list(SCALES))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="needs matplotlib")
    args = parser.parse_args()
    rows, steep = [], []
    for name, scale in SCALES.items():
        if args.only and name not in args.only:
            continue
        own = []
        for size in map(int, getattr(args, name).split(",")):
            with tempfile.TemporaryDirectory(prefix="scale-") as folder:
                seconds, peak = scale(size, Path(folder))
            own.append((size, seconds, peak))
            print(f"{name:10} {size:8,}  {seconds:8.2f} s  {peak / 2**20:8.0f} MiB", flush=True)
        (small, fast, _), (large, slow, _) = own[0], own[-1]
        exponent = math.log(slow / fast) / math.log(large / small) if large > small else 0.0
        print(f"{name:10} time grows as size to the power of {exponent:.2f}")
        if exponent > MOST_EXPONENT and slow > SECONDS:
            steep.append(name)
        rows += [{"scale": name, "size": n, "seconds": s, "peak_bytes": p} for n, s, p in own]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), "utf-8")
    if args.plot:
        plot(rows, args.plot)
    for name in steep:
        print(f"failed: {name} grows faster than n log n")
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
