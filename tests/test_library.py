"""The library as a user's type checker sees it: every verb with its signature."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import se_deploy

SCRIPT = """\
from importlib import metadata
from pathlib import Path
from se_deploy import build_engine, export, inspect, parity, profile, quantize
from se_deploy.options import CalibrationOptions, EngineOptions, Limits

made = export("timm:seresnet50", "x.onnx", target="orin-nano")
small = quantize(made.onnx, "x.int8.onnx", calibration=CalibrationOptions(data=Path("photos")))
engine = build_engine(small.onnx, "x.engine", engine=EngineOptions(workspace_bytes=1 << 30))
warnings: tuple[str, ...] = inspect("x.onnx", plan=True).warnings
same: bool = parity("timm:seresnet50", [engine.engine], data="photos", limits=Limits(min_top1=0.9)).passed
fast: float = profile(["x.onnx"], reference="timm:seresnet50").artifacts[0].latency.p50_ms
"""
WRONG = {
    'export(3, "x.onnx")': "str | Path",
    'export("a", "b", precision="fp64")': "precision",
    'quantize("a", "b", base="int8")': "base",
    'build_engine("a", "b", target=86)': "target",
    'inspect("a", plann=True)': "plann",
    'parity("a", ["b"])': "data",
    'profile("a", batch="1")': "batch",
}
HEAVY = ["torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "click", "rich", "PIL", "msgspec"]


def mypy(folder, text):
    """Check a script as a user of the installed package would; what the package itself uses is not read."""
    (folder / "user.py").write_text(text)
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in HEAVY)
    (folder / "mypy.ini").write_text(f"[mypy]\nstrict = True\nfollow_imports = silent\n{skipped}")
    root = Path(se_deploy.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-m", "mypy", "user.py", "--cache-dir", "cache"],
        cwd=folder,
        env={"MYPYPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.mark.slow  # mypy reads the whole package
def test_a_type_checker_sees_every_verb_with_its_signature(tmp_path):
    reveal = "".join(f"reveal_type({verb})\n" for verb in se_deploy.__all__ if verb != "__version__")
    lines = [*(SCRIPT + reveal).splitlines(), *WRONG]
    out = mypy(tmp_path, "\n".join(lines) + "\n")
    messages = re.findall(r"^user\.py:(\d+): (?:error|note): (.*)$", out, re.MULTILINE)
    found = {int(number): text for number, text in reversed(messages)}  # the first of each line
    wrong = {lines.index(line) + 1: word for line, word in WRONG.items()}
    for number, word in wrong.items():
        assert word in found.pop(number, ""), lines[number - 1]
    revealed = {lines[number - 1]: found.pop(number) for number in list(found) if "Revealed" in found[number]}
    assert not found, out
    assert len(revealed) == len(se_deploy.__all__) - 1
    assert all("def (" in text and "object" not in text for text in revealed.values()), revealed


@pytest.mark.parametrize("name", se_deploy.__all__)
def test_every_name_is_there_and_unknown_ones_are_not(name):
    assert name in dir(se_deploy)
    assert getattr(se_deploy, name)
    with pytest.raises(AttributeError):
        getattr(se_deploy, f"{name}s")


def test_the_package_imports_nothing_heavy():
    code = f"import sys, se_deploy; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_source_tree_that_is_not_installed_has_a_version_too(monkeypatch):
    """A machine without a package index runs it by PYTHONPATH: `doctor` ended in a traceback there."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert se_deploy.__version__ == "0+uninstalled"
