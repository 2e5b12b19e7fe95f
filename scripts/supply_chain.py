"""Build what is published, install it as a stranger would, try it, and say what comes with it.

    python scripts/supply_chain.py OUT [--extra cpu] [--no-audit]

Leaves in OUT: the wheel and the sdist; licences.md, every package that `se-deploy[EXTRA]` brings with its
version and licence; sbom.cdx.json, the same as a CycloneDX bill of materials; audit.json, the known
vulnerabilities that pip-audit finds. Ends with 1 where an install does not work, the wheel and the sdist hold
different files, a licence is unknown, or there is a vulnerability. Needs a package index.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("hatchling>=1.26", "pip-audit>=2.7", "cyclonedx-bom>=5")
_LICENCES = """
import json
from importlib import metadata
found = []
for one in metadata.distributions():
    head = one.metadata
    said = head.get("License-Expression") or ""
    classes = [c for c in head.get_all("Classifier") or () if c.startswith("License ::")]
    classes = [c.rpartition(" :: ")[2] for c in classes]
    text = (head.get("License") or "").strip().splitlines()
    found.append([head["Name"], one.version, said or "; ".join(classes) or (text[0][:60] if text else "")])
print(json.dumps(sorted(found, key=lambda row: row[0].lower())))
"""
_TRIED = (
    ("--version",),
    ("schema", "run"),
    ("inspect", "{net}", "--json"),
    ("export", "{net}", "-o", "{out}"),
)
"""Commands that need neither torch nor a compiler."""


def call(*words: str | Path) -> str:
    """Return what a program printed. Raises: SystemExit with what it said where it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def environment(folder: Path, *packages: str) -> Path:
    """Return the Python of a new environment with these packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
    return python


def built(python: Path, out: Path) -> tuple[Path, Path]:
    """Return the wheel and the sdist, after holding the one against the other."""
    call(python, "-m", "hatchling", "build", "-d", out)
    (wheel,), (sdist,) = sorted(out.glob("*.whl")), sorted(out.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        packaged = {n for n in archive.namelist() if n.startswith("se_deploy/") and "/_shipped/" not in n}
    with tarfile.open(sdist) as archive:
        source = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = sorted(packaged - source)
    if missing or not any("_shipped" in n for n in zipfile.ZipFile(wheel).namelist()):
        sys.exit(f"the sdist lacks {missing}, or the wheel lacks the shipped data")
    return wheel, sdist


def tried(python: Path, folder: Path) -> None:
    """Run the installed commands in a folder of their own."""
    command, out = python.with_name("se-deploy"), folder / "out.onnx"
    net = folder / "net.onnx"
    net.write_bytes((folder.parent / "net.onnx").read_bytes())
    for words in _TRIED:
        call(command, *(word.format(net=net, out=out) for word in words))


def network(path: Path) -> None:
    """Write a small network with an SE block."""
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT))
    import use_graphs  # noqa: PLC0415 - its folder had to be found first

    use_graphs.save(path, use_graphs.SE)


def main() -> int:
    """Run as the lines above say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--extra", default="cpu")
    parser.add_argument("--no-audit", action="store_true", help="where no database can be reached")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in (*args.out.glob("*.whl"), *args.out.glob("*.tar.gz")):
        old.unlink()
    failures = []
    with tempfile.TemporaryDirectory(prefix="supply-") as name:
        folder = Path(name)
        tools = environment(folder / "tools", *TOOLS)
        wheel, sdist = built(tools, args.out.resolve())
        network(folder / "net.onnx")
        pythons = {}
        for kind, file in (("wheel", wheel), ("sdist", sdist)):
            pythons[kind] = environment(folder / kind, f"{file}[{args.extra}]")
            tried(pythons[kind], folder / kind)
            print(f"{file.name}: installed with [{args.extra}], {len(_TRIED)} commands tried")
        rows = json.loads(call(pythons["wheel"], "-c", _LICENCES))
        unknown = [row[0] for row in rows if not row[2]]
        table = [
            "| package | version | licence |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
        (args.out / "licences.md").write_text("\n".join(table) + "\n", "utf-8")
        print(f"licences.md: {len(rows)} packages, {len(unknown)} of unknown licence")
        failures += [f"{package}: its licence is unknown" for package in unknown]
        sbom = args.out / "sbom.cdx.json"
        call(tools, "-m", "cyclonedx_py", "environment", "--of", "JSON", "-o", sbom, pythons["wheel"])
        print(f"sbom.cdx.json: {len(json.loads(sbom.read_text('utf-8'))['components'])} components")
        if not args.no_audit:
            failures += audited(tools, pythons["wheel"], args.out / "audit.json")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def audited(tools: Path, python: Path, out: Path) -> list[str]:
    """Return the known vulnerabilities of what is installed beside `python`, pip itself left out."""
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    command = [
        str(tools),
        "-m",
        "pip_audit",
        "--path",
        str(site),
        "--skip-editable",
        "-f",
        "json",
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():
        return [f"pip-audit did not run: {done.stderr.strip()[-300:]}"]
    packages = json.loads(out.read_text("utf-8"))["dependencies"]
    found = [(p["name"], v["id"]) for p in packages for v in p.get("vulns", ()) if p["name"] != "pip"]
    print(f"audit.json: {len(packages)} packages, {len(found)} known vulnerabilities")
    return [f"{name}: {identifier}" for name, identifier in found]


if __name__ == "__main__":
    sys.exit(main())
