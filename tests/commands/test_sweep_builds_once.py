"""A sweep makes nothing twice: what compilers, exporters and quantizers are asked is counted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import needs
import numpy as np
import pytest
import use_graphs

from se_deploy import graph, quantization
from se_deploy.backends.tensorrt import compiler
from se_deploy.commands import source, sweep, sweep_plan
from se_deploy.commands.sweep_plan import Asked
from se_deploy.schema import builtins
from se_deploy.sweeps.tasks import Outcome, Places

pytestmark = [pytest.mark.slow, needs.RTX]
SWEEP = """
models = "net.onnx"
precisions = ["fp16", "int8"]
targets = ["sm86", "sm89"]
calib_data = "x.npy"
search_plans = 6
warmup_ms = 1
duration_s = 0.02
"""


class InOrder:
    """Works on tasks in this process, one after the other, as their executors do in others."""

    nodes = ()

    def __init__(self, folder, kept):
        self.folder, self.kept = folder, kept

    def run(self, tasks, _inputs, *, ended, count):
        del count
        for task in tasks:
            before = None if task.after is None else self.folder / task.after
            output = self.folder / task.key
            output.mkdir(parents=True)
            task.function(task.arguments, Places(Path.cwd(), before, output, kept=self.kept))
            copy = self.folder / f"{task.key}-published"
            output.rename(copy)  # the sweep moves what it publishes, and others read this folder
            output.mkdir()
            for path in copy.iterdir():
                (output / path.name).write_bytes(path.read_bytes())
            ended(Outcome(task.key, "here", 1.0, 1, None, copy))


@pytest.fixture
def asked(monkeypatch):
    """How often each was asked for, by what it is and what goes in."""
    counts = Counter()

    def counting(place, name, key):
        plain = getattr(place, name)

        def counted(*args, **rest):
            counts[key(*args, **rest)] += 1
            return plain(*args, **rest)

        monkeypatch.setattr(place, name, counted)

    def request(_process, asked, _progress):
        rest = {name: value for name, value in asked.items() if name not in ("onnx", "engine")}
        what = "build" if asked["engine"] else "plan"
        return what, hashlib.sha256(Path(asked["onnx"]).read_bytes()).hexdigest(), repr(rest)

    def quantized(model, samples, *, options, **_):
        return "quantize", hashlib.sha256(graph.to_bytes(model)).hexdigest(), samples.sha256, repr(options)

    counting(compiler._Process, "ask", request)
    counting(source, "read", lambda model, options, **_: ("export", model, repr(options)))
    counting(quantization, "quantize", quantized)
    return counts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(monkeypatch, name, kept):
    """Return the cells of a sweep into the folder `name`, as their JSON."""
    executor = InOrder(Path(f"{name}-work").absolute(), kept)
    monkeypatch.setattr(sweep, "_executor", lambda _: contextlib.nullcontext(executor))
    matrix = sweep_plan.read(Path("sweep.toml"), Asked(), {})
    return {cell.folder: cell for cell in sweep.sweep(matrix, name).made.cells}


def timeless(value):
    """Return JSON without what a clock says, the bytes of engines, which no two builds share, and `kept`."""
    if isinstance(value, dict):
        left_out = {"seconds", "kept", "date", "profile", "latency"}
        left_out |= {"engine_sha256", "own_sha256", "engine_bytes", "size_bytes", "sizes"}
        made = {key: timeless(one) for key, one in value.items() if key not in left_out}
        if isinstance(hashes := made.get("sha256"), dict):  # of a cell's files: of some the name alone
            made["sha256"] = {
                n: sha if n in {"model.onnx", "model.int8.onnx"} else "" for n, sha in hashes.items()
            }
        return made
    if isinstance(value, list | tuple):
        return [timeless(one) for one in value if not (isinstance(one, str) and "timing" in one)]
    return re.sub(r"_token_\d+", "", value) if isinstance(value, str) else value  # ONNX Runtime's own names


def test_nothing_is_made_twice_and_all_is_as_if_it_were(folder, asked, monkeypatch):
    made = swept(monkeypatch, "once", folder / "kept")
    assert {what for what, *_ in asked} == {"build", "plan", "export", "quantize"}
    assert [key for key, count in asked.items() if count > 1] == []
    builds = sum(count for (what, *_), count in asked.items() if what == "build")
    assert builds == 4, "an FP16 and an INT8 engine for each of two targets"
    engines = {(name, one.path): one.kept for name, cell in made.items() for one in cell.artifacts}
    assert sum(engines.values()) == 2
    assert all(
        path == "model.fp16.engine" and "int8" in name for (name, path), kept in engines.items() if kept
    )

    for target in ("sm86", "sm89"):
        fp16, int8 = (Path("once/cells/net.onnx", f"{one}-{target}") for one in ("fp16", "int8"))
        name = "model.fp16.engine"
        assert (fp16 / name).read_bytes() == (int8 / name).read_bytes()

    asked.clear()
    alone = swept(monkeypatch, "alone", None)
    assert max(asked.values()) > 1, "without the keep the same is counted more than once"
    for name, cell in made.items():
        ours, theirs = (timeless(builtins(one)) for one in (cell, alone[name]))
        assert ours == theirs
        places = [Path(at, name) for at in ("once", "alone")]
        names = {path.name for path in places[0].iterdir()}
        assert names == {path.name for path in places[1].iterdir()}
        for one in names:
            if one.endswith(".onnx"):
                assert (places[0] / one).read_bytes() == (places[1] / one).read_bytes()
            if one.endswith(".engine.json") or one == "report.json":
                texts = [timeless(json.loads((place / one).read_text())) for place in places]
                assert texts[0] == texts[1], one


def test_a_damaged_engine_is_built_again(folder, asked, monkeypatch):
    swept(monkeypatch, "first", folder / "kept")
    for path in folder.rglob("*.kept"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    asked.clear()
    cells = swept(monkeypatch, "second", folder / "kept")
    assert sum(count for (what, *_), count in asked.items() if what == "build") == 4
    assert all(cell.state == "done" for cell in cells.values())
    asked.clear()
    cells = swept(monkeypatch, "third", folder / "kept")
    assert not [key for key in asked if key[0] in ("build", "plan")], "all of it is whole again"
    assert all(one.kept for cell in cells.values() for one in cell.artifacts)
