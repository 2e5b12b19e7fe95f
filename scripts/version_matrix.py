"""Install with each Python and with the oldest and newest dependencies, and run a choice of tests.

    python scripts/version_matrix.py [--python 3.10 --python 3.13] [--resolution lowest-direct] [--tests PATH]

Needs `uv`, which brings the Pythons that are not here, and a package index. Prints a Markdown table: one row
per Python and resolution, with the versions of the packages that matter and what the tests came to; ends with
1 where a cell fails.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RESOLUTIONS = ("highest", "lowest-direct")
SHOWN = ("onnx", "onnx-ir", "onnxruntime", "numpy", "pillow", "msgspec", "click")
TESTS = ("tests/test_files.py", "tests/test_graph.py", "tests/data", "tests/schema", "tests/passes/canonical")
_VERSIONS = "from importlib.metadata import version; print(*(version(n) for n in {names!r}))"


def call(*words: str | Path) -> tuple[int, str]:
    """Return a program's exit code and what it printed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout + done.stderr


def cell(uv: str, python: str, resolution: str, tests: tuple[str, ...]) -> tuple[list[str], bool]:
    """Return the row of one Python with one resolution, and whether its tests passed."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        code, said = call(uv, "venv", "-q", "--python", python, folder)
        if not code:
            own = Path(folder) / "bin" / "python"
            code, said = call(
                uv, "pip", "install", "-q", "--python", own, "--resolution", resolution, f"{ROOT}[cpu,test]"
            )
        if code:
            return [python, resolution, *("" for _ in SHOWN), f"no install: {said.strip()[-120:]}"], False
        versions = call(own, "-c", _VERSIONS.format(names=SHOWN))[1].split()
        code, said = call(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        last = said.strip().splitlines()[-1] if said.strip() else "nothing said"
        return [python, resolution, *versions, last], code == 0


def main() -> int:
    """Run as the lines above say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", action="append", help="default: 3.10 to 3.13")
    parser.add_argument("--resolution", action="append", choices=RESOLUTIONS)
    parser.add_argument(
        "--tests", action="append", help="default: files, graphs, data, schema, canonical form"
    )
    args = parser.parse_args()
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("uv is not installed: pip install uv")
    rows, passed = [], True
    for python in args.python or PYTHONS:
        for resolution in args.resolution or RESOLUTIONS:
            row, fine = cell(uv, python, resolution, tuple(args.tests or TESTS))
            rows.append(row)
            passed = passed and fine
            print(f"{python} {resolution}: {row[-1]}", file=sys.stderr, flush=True)
    print(f"| Python | resolution | {' | '.join(SHOWN)} | tests |")
    print("|" + "---|" * (len(SHOWN) + 3))
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
