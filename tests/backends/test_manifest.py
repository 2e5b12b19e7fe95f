import hashlib
import json

import plan_graphs
import pytest
from msgspec.structs import replace

from se_deploy import files, fusion, graph
from se_deploy.backends import manifest as manifests
from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.commands import as_schema
from se_deploy.errors import BadArtifact
from se_deploy.schema import input_spec
from se_deploy.schema.files import ShapeRange
from se_deploy.targets import resolve_target

pytest.importorskip("tensorrt_rtx")

SPEC = input_spec.InputSpec("x", 32, 14, 14, (0.0,) * 32, (1.0,) * 32, labels=("zero", "one"))
BLOCKS = (as_schema.block(plan_graphs.block(plan_graphs.se_net())),)


@pytest.fixture(scope="module")
def built():
    compiler = Compiler("tensorrt-rtx")
    options = BuildOptions(targets=(resolve_target("sm86"), resolve_target("sm89")), workspace_bytes=1 << 30)
    yield compiler.build(plan_graphs.se_net(), options)
    compiler.close()


@pytest.fixture
def engine_path(built, tmp_path):
    path = tmp_path / "net.engine"
    graph.save(plan_graphs.se_net(), tmp_path / "net.engine.onnx")
    (tmp_path / "cache.json").write_text("{}")
    path.write_bytes(built.data)
    described = manifests.describe(
        path,
        tmp_path / "net.engine.onnx",
        built,
        precision="fp32",
        calibration_sha256="ab" * 32,
        cache=tmp_path / "cache.json",
        image=SPEC,
        plan=fusion.to_schema(built.plan, (), "fp32"),
        blocks=BLOCKS,
    )
    manifests.write(described, manifests.path_of(path))
    return path


def test_a_manifest_comes_back_as_it_was_written(engine_path, built):
    manifest, warnings = manifests.check(engine_path)
    assert warnings == ()
    assert manifest == manifests.read(engine_path)
    assert (manifest.engine, manifest.onnx) == ("net.engine", "net.engine.onnx")
    assert (manifest.runtime, manifest.targets) == ("tensorrt-rtx", ("sm86", "sm89"))
    assert manifest.engine_sha256 == files.sha256(engine_path)
    assert manifest.calibration_cache_sha256 == files.sha256(engine_path.parent / "cache.json")
    assert manifest.input == SPEC
    profile = built.shapes["x"]
    assert manifest.shapes == {"x": ShapeRange(profile.min, profile.opt, profile.max)}
    assert manifest.blocks == BLOCKS
    assert manifest.plan.kernels == built.plan.kernels


def test_the_file_names_its_schema_and_no_folder(engine_path):
    text = manifests.path_of(engine_path).read_text("utf-8")
    assert json.loads(text)["schema"] == "se-deploy/manifest/1"
    assert str(engine_path.parent) not in text


def test_nvidias_own_tool_builds_the_same(engine_path):
    line = manifests.read(engine_path).trtexec
    assert line.startswith("tensorrt_rtx --onnx=net.engine.onnx --saveEngine=net.engine ")
    assert "--minShapes=x:1x32x14x14" in line
    assert "--maxShapes=x:16x32x14x14" in line
    assert "--computeCapabilities=86,89" in line
    assert "--memPoolSize=workspace:1024" in line
    assert "--fp16" not in line


def test_an_engine_that_was_changed_is_refused(engine_path):
    engine_path.write_bytes(engine_path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(BadArtifact, match="is not the engine"):
        manifests.check(engine_path)


def test_an_engine_without_its_manifest_is_refused(engine_path):
    manifests.path_of(engine_path).unlink()
    with pytest.raises(BadArtifact, match="has no manifest"):
        manifests.check(engine_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "other/1"}', '{"schema": "se-deploy/manifest/1"}']
)
def test_what_is_no_manifest_is_refused(engine_path, text):
    manifests.path_of(engine_path).write_text(text)
    with pytest.raises(BadArtifact, match="a manifest"):
        manifests.read(engine_path)


def test_bytes_that_are_no_engine_are_refused_even_with_the_right_hash(engine_path):
    engine_path.write_bytes(b"junk")
    path = manifests.path_of(engine_path)
    manifests.write(replace(manifests.read(engine_path), engine_sha256=files.sha256(engine_path)), path)
    with pytest.raises(BadArtifact, match="does not begin"):
        manifests.check(engine_path)


@pytest.mark.parametrize(
    "edit",
    [
        {"precision": "int8"},
        {"onnx_sha256": "0" * 64},
        {"targets": ["sm90"]},
        {"input": None},
        {"of_a_newer_version": 1},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_a_manifest_that_was_edited_is_refused(engine_path, edit):
    path = manifests.path_of(engine_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(BadArtifact, match="was changed since"):
        manifests.check(engine_path)


def test_a_manifest_of_before_and_one_of_a_newer_version_are_read(engine_path):
    path = manifests.path_of(engine_path)
    fields = json.loads(path.read_text())
    del fields["own_sha256"]
    path.write_text(json.dumps(fields))
    assert manifests.check(engine_path).manifest.precision == "fp32"
    newer = fields | {"of_a_newer_version": [1.5]}
    text = json.dumps(newer, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(newer | {"own_sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=4))
    assert manifests.check(engine_path).manifest.precision == "fp32"


def test_an_onnx_file_that_was_changed_since_is_a_warning(engine_path):
    engine_path.with_name("net.engine.onnx").write_bytes(b"other")
    assert "no longer the file" in manifests.check(engine_path).warnings[0]


def test_an_engine_that_cannot_be_read_is_refused(engine_path):
    engine_path.unlink()
    with pytest.raises(BadArtifact, match="cannot be read"):
        manifests.check(engine_path)
