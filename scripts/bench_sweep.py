"""Measure what a sweep takes besides its cells: overhead, efficiency, cells per minute, here and on Ray.

    python scripts/bench_sweep.py [--cells 1000] [--parts overhead efficiency real search ...]

Stub cells are two steps that wait (`stub_cells.py`), so their figures are those of the sweep alone; `real`
runs `sweep` on small SE networks, and `search` the search for rewrites of one network. Ray is a cluster of
one or two nodes on loopback, one processor each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import stub_cells
from onnx import numpy_helper

from se_deploy.cli import main as command
from se_deploy.commands.export import choices_path, export
from se_deploy.options import NetworkOptions, TargetOptions
from se_deploy.sweeps import cluster
from se_deploy.sweeps.local import Local
from se_deploy.sweeps.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from se_deploy.sweeps.tasks import Executor

WAIT_S = 0.5  # of each step of the stubs that efficiency is measured with
WAITING_CELLS = 32
REAL_CELLS = 6
PARTS = ("overhead", "ray-overhead", "efficiency", "real", "ray-real", "search")
SEARCHED = ("se_deploy:mobilenet_v3_small",)
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", cluster.ON_LOOPBACK: "0"}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
devices = {"se_deploy:sm86": 1, "se_deploy:sm89": 1}
for _ in range(int(sys.argv[1])):
    cluster.add_node(num_cpus=1, num_gpus=0, resources=devices, object_store_memory=200_000_000)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch,3,32,32] x, float[16,3,3,3] w0, float[4,16,1,1] w1, float[16,4,1,1] w2, float[10,16] w3)
=> (float[batch,10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0)
    r = Relu(a)
    p = GlobalAveragePool(r)
    h = Conv(p, w1)
    u = Relu(h)
    e = Conv(u, w2)
    s = Sigmoid(e)
    m = Mul(r, s)
    q = GlobalAveragePool(m)
    f = Flatten(q)
    y = Gemm <transB = 1> (f, w3)
}"""


def stubs(count: int, seconds: float) -> list[Task]:
    """Return the steps of so many cells."""
    return [
        task
        for n in range(count)
        for task in (
            Task(f"p{n}", stub_cells.prepare, seconds, {}),
            Task(f"d{n}", stub_cells.deploy, seconds, {}, after=f"p{n}"),
        )
    ]


def timed(executor: Executor, tasks: list[Task]) -> float:
    """Return the seconds that the tasks take together."""
    failed = []
    began = time.perf_counter()
    executor.run(
        tasks, {}, ended=lambda one: failed.append(one) if one.failure else None, count=lambda _: None
    )
    took = time.perf_counter() - began
    if failed:
        raise SystemExit(f"a stub failed: {failed[0].failure}")
    return took


@contextlib.contextmanager
def nodes(count: int) -> Iterator[None]:
    """Run a cluster that `--on ray` finds."""
    environment = os.environ | ENVIRONMENT
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(count)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        if process.stdout is None or process.stdin is None:
            raise SystemExit("the cluster has no pipes")
        line = next((line for line in process.stdout if line.startswith("127.0.0.1:")), None)
        if line is None:
            raise SystemExit("the cluster did not start")
        os.environ["RAY_ADDRESS"] = line.strip()
        try:
            yield
        finally:
            process.stdin.close()


def overhead(executor: Executor, name: str, most: int) -> None:
    """Print what a cell takes that does nothing, for more and more of them."""
    for count in [n for n in (10, 100, 1000, 10_000) if n <= most]:
        took = timed(executor, stubs(count, 0.0))
        print(f"| {name} | {count} | {took:.1f} | {1000 * took / count:.0f} |", flush=True)


def efficiency(folder: Path) -> None:
    """Print how much of the ideal is reached where steps wait and take no processor."""
    for jobs in (1, 2, 4, 8):
        took = timed(Local(folder, jobs, 0), stubs(WAITING_CELLS, WAIT_S))
        ideal = WAITING_CELLS * 2 * WAIT_S / jobs
        print(f"| {jobs} | {took:.1f} | {ideal:.1f} | {100 * ideal / took:.0f} % |", flush=True)


def network(folder: Path) -> None:
    """Write a small network, its data, and the sweep of it."""
    rng = np.random.default_rng(0)
    names = []
    for n in range(REAL_CELLS // 2):
        proto = onnx.parser.parse_model(NET)
        shapes = {"w0": (16, 3, 3, 3), "w1": (4, 16, 1, 1), "w2": (16, 4, 1, 1), "w3": (10, 16)}
        for name, shape in shapes.items():
            array = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        names.append(f"net{n}.onnx")
        onnx.save(proto, folder / names[-1])
    np.save(folder / "x.npy", rng.standard_normal((8, 3, 32, 32), np.float32))
    (folder / "sweep.toml").write_text(
        f'models = {names}\nprecisions = "fp16"\ntargets = ["sm86", "sm89"]\ncalib_data = "x.npy"\n'
        "warmup_ms = 1\nduration_s = 0.05\nsearch_plans = 0\n"
    )


def cells_per_minute(folder: Path, name: str, *words: str) -> None:
    """Print how many real cells a minute has."""
    out = str(folder / name.replace(" ", "-"))
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = command(["sweep", "sweep.toml", "-q", "--json", "-o", out, *words], standalone_mode=False)
    took = time.perf_counter() - began
    if code:
        raise SystemExit(f"the sweep ended with {code}")
    print(f"| {name} | {took:.0f} | {60 * REAL_CELLS / took:.1f} |", flush=True)


def searches(folder: Path) -> None:
    """Print what the search for rewrites of a network takes here and on workers; its files must be equal."""
    print("| network | on | seconds | plans | seconds of planning, by node |\n|---|---|---|---|---|")
    for spec in SEARCHED:
        name = spec.rpartition(":")[2]
        export(spec, folder / f"{name}.onnx", network=NetworkOptions(batch=1))
        for on, count in (("local", 0), ("ray", 1), ("ray", 2)):
            with nodes(count) if count else contextlib.nullcontext():
                one_search(folder, name, on, count)


def one_search(folder: Path, name: str, on: str, count: int) -> None:
    """Export a network for a target; print what its search took."""
    began: dict[str, float] = {}
    took: dict[str, float] = {}
    plans = 0

    def progress(step: str, done: int, total: int, _found: str = "") -> None:
        nonlocal plans
        plans = max(plans, done) if step == "planning rewrites" else plans
        if step == "rewrites":
            (took if done == total else began)[step] = time.perf_counter()

    output = folder / f"{name}-{on}-{count}.onnx"
    made = export(
        folder / f"{name}.onnx", output, target=TargetOptions("tensorrt-rtx"), on=on, progress=progress
    )
    alone = folder / f"{name}-local-0.onnx"
    for path in (output, choices_path(output)):
        other = alone if path == output else choices_path(alone)
        if path.exists() != other.exists() or (path.exists() and path.read_bytes() != other.read_bytes()):
            raise SystemExit(f"{path.name} is not what this machine alone makes of {name}")
    shares = ", ".join(f"{one.seconds:.1f}" for one in made.worked.shares) or "-"
    where = "this machine" if not count else f"Ray, {count} node{'s' * (count > 1)}"
    print(
        f"| {name} | {where} | {took['rewrites'] - began['rewrites']:.1f} | {plans} | {shares} |", flush=True
    )


def main() -> None:
    """Print the tables of docs/sweeps.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]  # of every process that runs a stub
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if {"overhead", "ray-overhead"} & set(asked.parts):
            print("| on | cells | seconds | ms per cell |\n|---|---|---|---|")
        if "overhead" in asked.parts:
            overhead(Local(folder, 1, 0), "1 process", asked.cells)
            overhead(Local(folder, 2, 0), "2 processes", asked.cells)
        if "ray-overhead" in asked.parts:
            with nodes(2), cluster.opened("ray", retries=1, store=None) as joined:
                overhead(joined, "Ray, 2 nodes", asked.cells)
        if "efficiency" in asked.parts:
            print("| processes | seconds | ideal | efficiency |\n|---|---|---|---|")
            efficiency(folder)
        if {"real", "ray-real"} & set(asked.parts):
            print("| on | seconds | cells per minute |\n|---|---|---|")
        network(folder)
        os.chdir(folder)
        if "real" in asked.parts:
            cells_per_minute(folder, "1 process", "--jobs", "1")
            cells_per_minute(folder, "2 processes", "--jobs", "2")
        for count in (1, 2) if "ray-real" in asked.parts else ():
            with nodes(count):
                cells_per_minute(folder, f"Ray, {count} node{'s' * (count > 1)}", "--on", "ray")
        if "search" in asked.parts:
            searches(folder)


if __name__ == "__main__":
    main()
