"""What a machine with an NVIDIA GPU, and nothing else prepared, shows of this project, in at most 8 minutes.

    scripts/on_gpu [--output on_gpu.json] [--minutes 8] [--step NAME]... [--batch N]... [--again]
                   [--rehearse]

Steps, each in a process of its own, so that one that fails or hangs takes no other along; those that are done
are kept in the output and not run again without --again:

    cuda         versions, `pytest -m gpu` where it can run, and cuda.py for real: allocation, copies, events,
                 capture, a capture that fails, memory that is full
    rewrites     the exact rewrites without TensorRT: FP16 graphs as users have them and as they are after
                 rewriting, as PyTorch modules: channels-last, from a CUDA graph and compiled, batch 1 and 8
    rtx          TensorRT-RTX where it is: build, run, time, or its exact refusal
    onnxruntime  ONNX Runtime's CUDA provider: parity and time of FP32, FP16 and INT8
    tensorrt     full TensorRT where it is: build, run, time

`cuda` and `rewrites` need Python 3.10, numpy, PyTorch and cuda-bindings; what a further step lacks is what it
answers. --rehearse runs the same code on the CPU, with less of everything.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ROOT / "scripts" / "gpu_graphs"
SHARES = {"cuda": 1.25, "rewrites": 3.0, "rtx": 1.25, "onnxruntime": 1.25, "tensorrt": 1.25}
"""Minutes of eight that a step may take."""

NETWORKS = (
    "seresnet50", "efficientnet_b0", "mobilenetv3_small_100", "ese_vovnet19b_dw", "seresnext50_32x4d",
    "seresnet18", "regnety_008", "rexnet_100", "ghostnet_100", "tf_efficientnetv2_b0",
)  # fmt: skip
"""Those that the README's table of plans has, the most telling first: time may end before the list does."""

REHEARSED = ("mobilenetv3_small_100",)
COMPILED = 3  # networks that torch.compile gets: each takes it half a minute
CALLS, ROUNDS, WARM_UP = 100, 5, 10
BATCHES = (1, 8)
GPU_TESTS = ("tests/gpu", "tests/backends")  # what they import is in NEEDED
PACKAGES = (
    "torch", "triton", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-bindings", "tensorrt",
    "tensorrt-rtx", "msgspec", "pytest",
)  # fmt: skip
NEEDED = ("click", "msgspec", "numpy", "onnx", "onnx_ir", "onnxruntime", "rich")  # of the command line

Found = dict[str, Any]


def step_cuda(folder: Path, device: str) -> Found:
    """Return versions, what cuda.py does on the device, and the verdict of `pytest -m gpu`."""
    return {
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "driver": _first_line(
            ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm", "--format=csv,noheader"]
        ),
        "device": device,
        "calls": _cuda_calls(),
        "pytest": _gpu_tests(folder),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _cuda_calls() -> Found:
    """Go through what cuda.py does; each answer is "ok" or the error."""
    import numpy as np  # noqa: PLC0415 - only here

    from se_deploy.errors import SeDeployError  # noqa: PLC0415 - its path was set in main

    try:
        cuda = _cuda_module().Cuda()
    except SeDeployError as e:
        return {"opened": e.message}
    source = np.arange(1 << 20, dtype=np.float32)
    target = np.empty_like(source)
    pointer = cuda.take(source.nbytes)
    found: Found = {"opened": "ok", "name": cuda.name}

    def copies() -> None:
        cuda.upload(source, pointer)
        cuda.download(pointer, target)

    copies()
    cuda.synchronize()
    found["copies"] = "ok" if np.array_equal(source, target) else "other numbers came back"
    found["copy_ms"] = cuda.elapsed_ms(lambda: cuda.upload(source, pointer))
    fill = lambda: cuda.call("cudaMemsetAsync", pointer, 0, source.nbytes, cuda.stream)  # noqa: E731 - a call
    graph = cuda.capture(fill)
    cuda.call("cudaGraphLaunch", graph, cuda.stream)
    cuda.download(pointer, target)
    cuda.synchronize()
    found["capture"] = "ok" if not target.any() else "the replay did nothing"
    found["replays_ms"] = statistics.median(
        cuda.gaps_ms(lambda: cuda.call("cudaGraphLaunch", graph, cuda.stream), CALLS)
    )
    try:
        cuda.capture(cuda.synchronize)  # a stream that is recorded must not be waited for
        found["failed_capture"] = "it was allowed"
    except SeDeployError as e:
        found["failed_capture"] = e.message
    cuda.call("cudaGraphLaunch", graph, cuda.stream)
    cuda.synchronize()
    found["after_failed_capture"] = "ok"
    try:
        cuda.take(1 << 50)
        found["full_memory"] = "a petabyte was given"
    except SeDeployError as e:
        found["full_memory"] = e.message
    cuda.give(pointer)
    cuda.close()
    return found


def _cuda_module() -> Any:  # noqa: ANN401 - a module
    """Return cuda.py alone: the package around it needs what this machine may not have."""
    path = ROOT / "se_deploy" / "backends" / "tensorrt" / "cuda.py"
    spec = importlib.util.spec_from_file_location("cuda_calls", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gpu_tests(folder: Path) -> str:
    missing = [name for name in (*NEEDED, "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not run: {', '.join(missing)} not installed"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *GPU_TESTS]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), check=False, capture_output=True, text=True)
    (folder / "pytest.log").write_text(done.stdout + done.stderr)
    return (done.stdout.strip().splitlines() or ["it said nothing"])[-1]


def step_rewrites(
    folder: Path, device: str, batches: tuple[int, ...], *, rehearse: bool, until: float
) -> Found:
    """Return rows of network, batch, mode and graph with ms and the ratio to the network as users have it."""
    import torch  # noqa: PLC0415 - the other steps run without

    torch.backends.cudnn.benchmark = True
    rows: list[Found] = []
    found: Found = {"torch": torch.__version__, "device": device, "rows": rows, "complete": False}
    networks = REHEARSED if rehearse else NETWORKS
    turns = [("replayed", network, batch) for network in networks for batch in batches]
    if not rehearse:  # the slow ones last
        turns += [("compiled", network, batch) for batch in batches for network in networks[:COMPILED]]
    for mode, network, batch in turns:
        if time.time() > until:
            return found
        forms = ["fp16", "ours.bdynamic", *(["ours.b1"] if batch == 1 else [])]
        rows += _timed_forms(network, forms, batch, mode, device=device, rehearse=rehearse)
        (folder / "rewrites.part.json").write_text(json.dumps(found))
    return {**found, "complete": True}


def _timed_forms(
    network: str, forms: list[str], batch: int, mode: str, *, device: str, rehearse: bool
) -> list[Found]:
    """Time the forms of a network in turn, so that a drifting clock hits all alike."""
    import torch  # noqa: PLC0415 - as above

    calls, rounds = (1, 1) if rehearse else (CALLS, ROUNDS)
    head = {"network": network, "batch": batch, "mode": mode}
    try:
        if mode == "compiled":
            torch._dynamo.reset()  # noqa: SLF001 - or it gives up after some graphs and runs them as they are
        runs = {form: _runner(network, form, batch, mode, device) for form in forms}
        took: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(rounds):
            for form in forms[turn % len(forms) :] + forms[: turn % len(forms)]:
                took[form].append(_mean_ms(runs[form], calls, device))
    except RuntimeError as e:  # of PyTorch or its compiler: one network less, said so
        return [{**head, "error": str(e).splitlines()[0][:300]}]
    base = statistics.median(took[forms[0]])
    return [
        {**head, "form": form, "ms": statistics.median(took[form]),
         "ratio": statistics.median(took[form]) / base, "rounds_ms": took[form]}
        for form in forms
    ]  # fmt: skip


def _runner(network: str, form: str, batch: int, mode: str, device: str) -> Callable[[], object]:
    """Return a call that runs the graph once; on a GPU it replays a CUDA graph."""
    import torch  # noqa: PLC0415 - as above
    from graph_module import Module, load  # noqa: PLC0415 - beside this script

    graph = load(GRAPHS / f"{network}.{form}.json.gz")
    module = Module(graph).to(device).eval().channels_last()
    if device == "cpu":
        module = module.in_float32()
    shape = [batch, *graph["inputs"][0]["shape"][1:]]
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    run = torch.compile(module, dynamic=False) if mode == "compiled" else module
    with torch.inference_mode():
        for _ in range(3):  # compiles, and chooses cuDNN's algorithms
            wanted = run(x)
        if device == "cpu":
            return lambda: _inferred(run, x)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            found = run(x)
    recorded.replay()
    torch.cuda.synchronize()
    for one, other in zip(found, wanted, strict=True):
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True):  # weights are random
            raise RuntimeError(f"the recording of {network}.{form} computes something else")

    def replay(_held: object = (module, x, found)) -> None:
        """Replay; a recording reads the memory of what it was recorded from, which must stay."""
        recorded.replay()

    return replay


def _inferred(run: Callable[..., object], x: object) -> object:
    import torch  # noqa: PLC0415 - as above

    with torch.inference_mode():
        return run(x)


def _mean_ms(run: Callable[[], object], calls: int, device: str) -> float:
    """Return the mean time of calls that wait for each other on the device, and not for the host."""
    import torch  # noqa: PLC0415 - as above

    for _ in range(0 if device == "cpu" else WARM_UP):
        run()
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) * 1e3 / calls
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(calls):
        run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / calls


def step_engine(folder: Path, runtime: str, *, rehearse: bool) -> Found:
    """Return what the commands say of the shipped network's FP16 engine: built, run, compared, timed."""
    module = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}[runtime]
    name = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}[runtime]
    if importlib.util.find_spec(module) is None:
        return {"skipped": f"{module} is not installed"}
    if problem := _without_commands():
        return {"skipped": problem}
    net, data = _network(folder)
    engine = folder / f"{runtime}.engine"
    build = (
        "build-engine",
        net,
        "-o",
        engine,
        "--fp16",
        "--runtime",
        name,
        "--overwrite",
        "--search-plans",
        1,
    )
    built = _command(*build, *(("--no-rewrites",) if rehearse else ()))
    if "error" in built:
        return {"build": built}
    return {
        "build": {key: built.get(key) for key in ("found_precision", "seconds", "warnings")},
        "parity": _parity(_command("parity", net, engine, "--data", data, "--preset", "fp16")),
        "profile": [
            _command(
                "profile", engine, "--batch-size", 1, "--batch-size", 8, flag, *_short(rehearse=rehearse)
            )
            for flag in ("--cuda-graph", "--no-cuda-graph")
        ],
    }


def step_onnxruntime(folder: Path, device: str, *, rehearse: bool) -> Found:
    """Return parity and time of the shipped network in FP32, FP16 and INT8 on ONNX Runtime's provider.

    `evaluated` is what the CPU says of the FP16 file without a GPU, every FP16 tensor rounded.
    """
    if problem := _without_commands():
        return {"skipped": problem}
    net, data = _network(folder)
    made = {"fp32": net, "fp16": folder / "fp16.onnx", "int8": folder / "int8.onnx"}
    steps = [
        _command("export", net, "-o", made["fp16"], "--fp16", "--overwrite"),
        _command("quantize", net, "-o", made["int8"], "--calib-data", data, "--overwrite"),
    ]
    refused = [step["error"] for step in steps if "error" in step]
    found: Found = {"device": device, "refused": refused, "parity": {}, "profile": {}, "replayed_ms": {}}
    found["evaluated"] = _parity(_command("parity", net, made["fp16"], "--data", data, "--device", "cpu"))
    for precision, path in made.items():
        if not path.is_file():
            continue
        words = ("--data", data, "--preset", precision, "--device", device)
        found["parity"][precision] = _parity(_command("parity", net, path, *words))
        timed = _command("profile", path, "--device", device, "--batch-size", 8, *_short(rehearse=rehearse))
        found["profile"][precision] = timed
        if device != "cpu":
            found["replayed_ms"][precision] = _replayed_ms(path, 8)
    return found


def _replayed_ms(path: Path, batch: int) -> float:
    """Return the median time of a call that ONNX Runtime replays from a CUDA graph of its own, in ms.

    `profile` times what ONNX Runtime does unless asked: launch by launch, which the host pays for.
    """
    import numpy as np  # noqa: PLC0415 - only here
    import onnxruntime as ort  # noqa: PLC0415 - only here

    ort.preload_dlls()
    plain = ort.InferenceSession(path, providers=["CUDAExecutionProvider"])
    session = ort.InferenceSession(path, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    (taken,), (given, *_) = session.get_inputs(), session.get_outputs()
    x = np.random.default_rng(0).standard_normal((batch, *taken.shape[1:])).astype(np.float32)
    (y, *_) = plain.run([given.name], {taken.name: x})
    bound_y = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(y), "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(taken.name, ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
    binding.bind_ortvalue_output(given.name, bound_y)
    for _ in range(WARM_UP):
        session.run_with_iobinding(binding)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - start)
    if not np.allclose(bound_y.numpy(), y, rtol=1e-2, atol=1e-2):
        raise RuntimeError(f"the recording of {path} computes something else")
    return statistics.median(times) * 1e3


def _without_commands() -> str | None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"the command line needs {', '.join(missing)}" if missing else None


def _network(folder: Path) -> tuple[Path, Path]:
    """Export the shipped network once, and draw its data. Raises: RuntimeError with the command's error."""
    import numpy as np  # noqa: PLC0415 - only here

    net, data = folder / "net.onnx", folder / "data.npy"
    if not data.is_file():
        np.save(data, np.random.default_rng(0).standard_normal((32, 1, 32, 32)).astype(np.float32))
    if not net.is_file():
        words = ("--model-arg", "in_channels=1", "--no-rewrites")
        made = _command("export", "se_deploy:se_resnet20", "-o", net, *words)
        if "error" in made:
            raise RuntimeError(made["error"]["message"])
    return net, data


def _short(*, rehearse: bool) -> tuple[object, ...]:
    return ("--warmup-ms", 1, "--duration-s", 0.05) if rehearse else ("--duration-s", 1.5)


def _parity(said: Found) -> Found:
    if "error" in said:
        return said
    (candidate,) = said["candidates"]
    return {key: candidate.get(key) for key in ("passed", "evaluated", "outputs", "checked_as")}


def _command(*words: object) -> Found:
    """Return the object that a command prints, an error's too."""
    command = [sys.executable, "-c", "from se_deploy.cli import main; main()", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), check=False, capture_output=True, text=True)
    try:
        said: Found = json.loads(done.stdout)
    except ValueError:
        return {"error": {"message": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}}
    return said


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return (done.stdout.strip().splitlines() or [None])[0]


def run_step(name: str, folder: Path, batches: tuple[int, ...], *, rehearse: bool, until: float) -> Found:
    """Run one step in this process."""
    device = "cpu" if rehearse else "cuda"
    if name == "cuda":
        return step_cuda(folder, device)
    if name == "rewrites":
        return step_rewrites(folder, device, batches, rehearse=rehearse, until=until)
    if name == "onnxruntime":
        return step_onnxruntime(folder, device, rehearse=rehearse)
    return step_engine(folder, name, rehearse=rehearse)


def supervised(name: str, folder: Path, options: argparse.Namespace, seconds: float) -> Found:
    """Run one step in a process of its own, for so long at most."""
    answer = folder / f"{name}.json"
    answer.unlink(missing_ok=True)
    command = [
        sys.executable, __file__, "--inside", name, "--folder", str(folder),
        "--until", str(time.time() + seconds), *(["--rehearse"] if options.rehearse else []),
        *(word for batch in options.batch or () for word in ("--batch", str(batch))),
    ]  # fmt: skip
    start = time.time()
    with (folder / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command, check=False, stdout=log, stderr=log, timeout=seconds + 10
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    took = {"took_s": round(time.time() - start, 1)}
    part = folder / "rewrites.part.json"
    if answer.is_file():
        return {**took, **json.loads(answer.read_text())}
    last = ((folder / f"{name}.log").read_text(errors="replace").strip().splitlines() or [""])[-1]
    failed = {**took, "failed": f"after its {seconds:.0f} s" if code is None else f"exit code {code}: {last}"}
    return {**failed, **json.loads(part.read_text())} if name == "rewrites" and part.is_file() else failed


def table(steps: dict[str, Found]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the rewrites, and one line for every other step."""
    for name, found in steps.items():
        if name != "rewrites":
            yield f"- {name} ({found.get('took_s')} s): {_summary(name, found)}"
    found = steps.get("rewrites", {})
    rows = [row for row in found.get("rows", []) if "ms" in row]
    if rows:
        yield ""
        where = f"{found['device']}, torch {found['torch']}"
        yield f"| network ({where}) | batch | mode | as users have it | form | rewritten | ratio |"
        yield "|---|---|---|---|---|---|---|"
    base = {(r["network"], r["batch"], r["mode"]): r["ms"] for r in rows if r["form"] == "fp16"}
    for row in rows:
        if row["form"] != "fp16":
            first = base[row["network"], row["batch"], row["mode"]]
            yield (
                f"| {row['network']} | {row['batch']} | {row['mode']} | {first:.4f} ms | {row['form']} | "
                f"{row['ms']:.4f} ms | {row['ratio']:.3f} |"
            )


def _summary(name: str, found: Found) -> str:
    for key in ("failed", "skipped"):
        if key in found:
            return str(found[key])
    if name == "cuda":
        opened = found["calls"].get("name", found["calls"]["opened"])
        return f"{found['driver']}; {opened}; pytest: {found['pytest']}"
    if name == "onnxruntime":
        parts = [f"{found['device']}, batch 8"]
        for precision, said in found["profile"].items():
            ms = [v["p50_ms"] for v in said.get("artifacts", [])]
            ms += [found["replayed_ms"][precision]] if precision in found["replayed_ms"] else []
            db = [f"{o['sqnr_db']:.1f} dB" for o in found["parity"][precision].get("outputs", [])]
            parts.append(f"{precision} {' replayed '.join(f'{one:.3f} ms' for one in ms)} {' '.join(db)}")
        evaluated = [f"{o['sqnr_db']:.1f} dB" for o in found["evaluated"].get("outputs", [])]
        return "; ".join([*parts, f"fp16 evaluated on the CPU {' '.join(evaluated)}"])
    if "error" in found["build"]:
        return f"refused: {found['build']['error']['message']}"
    timed = [a for one in found["profile"] for a in one.get("artifacts", [])]
    said = [one["error"]["message"] for one in found["profile"] if "error" in one]
    return "; ".join([*(f"batch {a['batch']} {a['p50_ms']:.3f} ms" for a in timed), *said[:1]])


def main() -> int:
    """Run the steps that are not done, and print what all of them found."""
    options = _arguments()
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    if options.inside:
        batches = tuple(options.batch or ((1,) if options.rehearse else BATCHES))
        found = run_step(
            options.inside, options.folder, batches, rehearse=options.rehearse, until=options.until
        )
        (options.folder / f"{options.inside}.json").write_text(json.dumps(found))
        return 0
    known = json.loads(options.output.read_text()) if options.output.is_file() else {}
    steps: dict[str, Found] = known.get("steps", {})
    with TemporaryDirectory(prefix="on-gpu-") as folder:
        for name in options.step or SHARES:
            if not options.again and name in steps and not {"failed", "skipped"} & steps[name].keys():
                continue
            seconds = 60 * SHARES[name] * options.minutes / sum(SHARES.values())
            print(f"{name} ... at most {seconds:.0f} s", file=sys.stderr, flush=True)
            steps[name] = supervised(name, Path(folder), options, seconds)
            whole = {
                "schema": "se-deploy/on-gpu/1",
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
                "rehearsed": options.rehearse,
                "steps": steps,
            }
            part = options.output.with_suffix(".part")
            part.write_text(json.dumps(whole, indent=1) + "\n")
            part.replace(options.output)
    print("\n".join(table(steps)))
    return 1 if any("failed" in found for found in steps.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("on_gpu.json"), help="results, kept step by step")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all steps together")
    parser.add_argument("--step", action="append", choices=SHARES, help="run this one only; repeatable")
    parser.add_argument("--batch", type=int, action="append", help="of `rewrites`; repeatable; 1 and 8")
    parser.add_argument("--again", action="store_true", help="run what is done once more")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with less of everything")
    for name, kind in (("--inside", str), ("--folder", Path), ("--until", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
