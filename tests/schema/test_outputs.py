"""What every command really prints is what its JSON Schema says, and comes back as its type."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import jsonschema
import numpy as np
import pytest
import use_graphs

from se_deploy import schema
from se_deploy.backends import manifest as manifests
from se_deploy.cli import main
from se_deploy.cli.main import COMMANDS
from se_deploy.errors import BadInput

pytestmark = pytest.mark.slow  # every command runs once

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("tensorrt_rtx")

SCHEMALESS = {"schema", "completion", "worker"}  # they print no object of their own
QUICK = ("--warmup-ms", "1", "--duration-s", "0.05", "--threads", "1")
CONFIG = """
[parity]
reference = "net.onnx"
candidates = "net.onnx"
data = "x.npy"
[precision]
files = {"net.onnx" = "fp32"}
[latency]
files = ["net.onnx"]
max_p50_ms = 1e6
warmup_ms = 1
duration_s = 0.05
[fusion]
files = "net.onnx"
runtime = "onnxruntime"
allow_split = 9
"""
SWEEP = """
models = ["net.onnx"]
precisions = ["fp16"]
data = "x.npy"
search_plans = 0
warmup_ms = 1
duration_s = 0.05
"""


def call(*words, code=0, gate=0):
    """Return the one object that a command prints with --json; `gate`: what may come instead of `code`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        left = main([*words, "--json"], standalone_mode=False)
    assert (left or 0) in {code, gate}, out.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One object of each command, all from one small network in a folder of their own."""
    folder = tmp_path_factory.mktemp("work")
    use_graphs.save(folder / "net.onnx", use_graphs.SE)
    use_graphs.image(folder / "red.png")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))
    (folder / "se-deploy.toml").write_text(CONFIG)
    (folder / "sweep.toml").write_text(SWEEP)
    with _inside(folder):
        run = call("run", "net.onnx", "-o", "out", "--fp16", "--data", "x.npy", "--search-plans", "1", *QUICK)
        yield {
            "run": [run, json.loads((folder / "out" / "report.json").read_text())],
            "export": [call("export", "net.onnx", "-o", "e.onnx"),
                       call("export", "net.onnx", "-o", "h.onnx", "--fp16")],
            "inspect": [call("inspect", "net.onnx", "--plan"), call("inspect", "out/model.fp16.engine"),
                        call("inspect", "net.onnx", "--calib-data", "x.npy")],
            "quantize": [call("quantize", "net.onnx", "--calib-data", "x.npy", "-o", "q.onnx")],
            "build-engine": [call("build-engine", "net.onnx", "-o", "net.engine", "--no-rewrites")],
            "parity": [call("parity", "net.onnx", "e.onnx", "h.onnx", "--data", "x.npy")],
            "profile": [call("profile", "net.onnx", "--reference", "e.onnx", *QUICK)],
            "check": [call("check", gate=3)],
            "report": [call("report", "out", "out")],
            "predict": [call("predict", "net.onnx", "red.png")],
            "bundle": [call("bundle", "net.onnx", "-o", "b"),
                       call("bundle", "net.onnx", "-o", "t", "--triton")],
            "networks": [call("networks")],
            "doctor": [call("doctor")],
            "error": [call("inspect", "red.png", code=1), call("inspect", "--no-such", code=2)],
            "manifest": [json.loads(manifests.path_of(folder / "net.engine").read_text())],
            "sweep": [call("sweep", "sweep.toml", "-o", "s"),
                      json.loads((folder / "s" / "sweep.json").read_text())],
            "sweep-cell": [json.loads(one.read_text()) for one in folder.glob("s/cells/*/*/cell.json")],
            "config": [tomllib.loads(CONFIG)],
            "sweep-file": [tomllib.loads(SWEEP)],
            "input": [json.loads((folder / "b" / "input.json").read_text())],
        }  # fmt: skip


@contextlib.contextmanager
def _inside(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def names(outputs):
    return [(name, found) for name, many in outputs.items() for found in many]


def test_every_output_is_what_its_schema_says(outputs):
    for name, found in names(outputs):
        made = schema.json_schema(name)
        jsonschema.Draft202012Validator.check_schema(made)
        jsonschema.validate(found, made)


def test_every_output_comes_back_as_its_type_and_goes_out_the_same(outputs):
    for name, found in names(outputs):
        if name in {"config", "sweep-file"}:
            continue  # what is not written has its default
        value = schema.convert(found, schema.OBJECTS[name], what=name, error=BadInput, hint="")
        assert json.loads(schema.encode(value)) == found, name


def test_every_command_has_a_schema_and_an_output(outputs):
    assert set(COMMANDS) - SCHEMALESS <= set(schema.OBJECTS)
    # `demo` is `run` on the shipped network and takes minutes; the others have tests of their own
    assert set(schema.OBJECTS) - set(outputs) == {"demo", "dry-run", "calibration-cache", "rewrites"}


def _objects(made):
    """Every object type of a JSON Schema."""
    return [one for one in made["$defs"].values() if one.get("type") == "object"]


def test_every_key_that_is_written_is_in_the_schema(outputs):
    """A typed writer cannot add a key on the side; a hand-written one could."""
    for name, found in names(outputs):
        made = schema.json_schema(name)
        closed = {**made, "$defs": {key: dict(one) for key, one in made["$defs"].items()}}
        for one in _objects(closed):
            if "properties" in one:
                one["additionalProperties"] = False
        jsonschema.validate(found, closed)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parity", lambda found: found.pop("candidates")),
        ("parity", lambda found: found["candidates"][0]["outputs"][0].update(passed="yes")),
        ("profile", lambda found: found["artifacts"][0].update(p50_ms=-1)),
        ("export", lambda found: found.update(schema="se-deploy/export/2")),
        ("inspect", lambda found: found["plans"][0]["blocks"][0].update(verdict="molten")),
    ],
)
def test_a_wrong_output_is_no_such_object(outputs, name, change):
    found = json.loads(json.dumps(outputs[name][0]))
    change(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema.json_schema(name))
    with pytest.raises(BadInput):
        schema.convert(found, schema.OBJECTS[name], what=name, error=BadInput, hint="")


@pytest.mark.parametrize("name", list(schema.OBJECTS))
def test_schema_prints_a_json_schema(name, capsys):
    assert main(["schema", name], standalone_mode=False) in {0, None}
    made = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(made)
    assert made == schema.json_schema(name)


def test_run_and_demo_differ_in_their_name_alone():
    run, demo = (schema.json_schema(name)["$defs"] for name in ("run", "demo"))
    assert {k: v for k, v in run["Run"]["properties"].items() if k != "schema"} == {
        k: v for k, v in demo["Demo"]["properties"].items() if k != "schema"
    }
    assert run["Run"]["required"] == demo["Demo"]["required"]
