"""Print what this tool itself costs in CPU time, each command beside what it is held against, in one run.

    python scripts/bench_tool.py [--rounds 3] [--hold] [--only export]

Every command is a process of its own; its CPU time is that of all of its processes, the least of the rounds
counts. `--hold` exits with 1 where a ratio is beyond the generous bound that CI holds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from matplotlib import cbook
from PIL import Image

from se_deploy.commands.artifacts import cpu_name
from se_deploy.schema import tool_version

NETWORK = "timm:seresnet50"
SMALL = "timm:mobilenetv3_small_100"
PHOTOGRAPHS = 64
SIDE = 480  # pixels of a photograph
TOOL = "from se_deploy.cli import main; main()"
PLAIN = """
import onnx, onnxsim, timm, torch
network = timm.create_model("seresnet50").eval()
batch = torch.export.Dim("N")
torch.onnx.export(
    network, (torch.randn(2, 3, 224, 224),), "plain.onnx",
    dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
)
simple, _ = onnxsim.simplify(onnx.load("plain.onnx"))
onnx.save(simple, "plain.onnx")
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A command of the tool, what it is held against, and by what."""

    name: str
    words: tuple[str, ...]
    against: str | None  # a Python program; None: `bound` is in seconds
    said: str
    bound: float  # that the tool is meant to keep
    generous: float  # that CI holds


CASES = (
    Case(
        "export", ("export", NETWORK, "-o", "net.onnx", "--overwrite"), PLAIN,
        "torch.onnx.export(dynamo=True) and onnxsim alone", 1.25, 1.6,
    ),
    Case("inspect", ("inspect", "net.onnx"), "import onnx_ir", "`import onnx_ir`", 1.5, 2.5),
    Case(
        "run", ("run", SMALL, "--calib-data", "photographs", "-o", "out", "--overwrite"), None,
        "seconds of CPU", 60.0, 180.0,
    ),
)  # fmt: skip


def cpu_seconds(words: list[str], folder: Path) -> float:
    """Run a command to its end in `folder` and return the CPU time of all of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=_environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(words[:6])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _environment() -> dict[str, str]:
    """Return the environment in which modules are compiled once, as an install does it, and not each time."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def write_photographs(folder: Path) -> None:
    """Write crops of the photograph that ships with matplotlib."""
    folder.mkdir()
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        whole = image.convert("RGB")
    for i in range(PHOTOGRAPHS):
        left, top = i % 8 * 4, i // 8 * 14
        whole.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{i:02d}.jpg", quality=90)


def main() -> None:
    """Time every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each command runs (default 3)")
    parser.add_argument("--hold", action="store_true", help="exit with 1 beyond the generous bounds")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these cases alone")
    asked = parser.parse_args()
    print(
        f"se-deploy {tool_version()}, {cpu_name()}, {os.cpu_count()} cores, least of {asked.rounds} rounds\n"
    )
    print("| command | CPU s | against | CPU s | ratio | meant | held in CI |\n|---|---|---|---|---|---|---|")
    beyond = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs")
        if asked.only and "export" not in asked.only:  # what `inspect` reads
            cpu_seconds([sys.executable, "-c", TOOL, *CASES[0].words], folder)
        for case in CASES:
            if asked.only and case.name not in asked.only:
                continue
            ours, theirs = [], []
            for _ in range(asked.rounds):  # in turns, so that a busy machine is busy for both
                ours.append(cpu_seconds([sys.executable, "-c", TOOL, *case.words], folder))
                if case.against is not None:
                    theirs.append(cpu_seconds([sys.executable, "-c", case.against], folder))
            ratio = min(ours) / min(theirs) if theirs else min(ours)
            beyond += [case.name] if ratio > case.generous else []
            command = " ".join(("se-deploy", *case.words))
            other = f"{min(theirs):.1f}" if theirs else ""
            print(
                f"| `{command}` | {min(ours):.1f} | {case.said} | {other} | {ratio:.2f} | {case.bound:g} | "
                f"{case.generous:g} |"
            )
    if asked.hold and beyond:
        sys.exit(f"beyond the bound: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
