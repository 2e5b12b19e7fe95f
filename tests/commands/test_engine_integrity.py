"""No engine is judged by an ONNX file in its place unless engine, manifest and file agree by their hashes."""

from __future__ import annotations

import numpy as np
import pytest
import use_graphs
from msgspec.structs import replace

from se_deploy.backends import manifest as manifests
from se_deploy.cli import main
from se_deploy.pytest_plugin import assert_parity

BYTES = b"vtrt" + bytes(64)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network, an engine of it with manifest and ONNX file, samples, and no GPU."""
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    onnx = use_graphs.save(tmp_path / "net.engine.onnx", use_graphs.SE)
    engine = tmp_path / "net.engine"
    engine.write_bytes(BYTES)
    made = replace(use_graphs.manifest(engine, onnx), precision="fp32")
    manifests.write(made, manifests.path_of(engine))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32))
    (tmp_path / "se-deploy.toml").write_text(
        '[parity]\nreference = "net.onnx"\ncandidates = ["net.engine"]\ndata = "x.npy"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def half(folder):
    (folder / "net.engine").write_bytes(BYTES[:34])


def text(folder):
    (folder / "net.engine").write_text("not found\n")


def swapped(folder):
    use_graphs.save(folder / "net.engine.onnx", use_graphs.SE.replace("Relu(a)", "Sigmoid(a)"))


def elsewhere(folder):
    (folder / "sub").mkdir()
    (folder / "net.engine.onnx").rename(folder / "sub" / "net.engine.onnx")


def outside(folder):
    """A manifest that names a file in another folder, with the right hash."""
    elsewhere(folder)
    path = folder / "net.engine"
    named = replace(manifests.read(path), onnx="sub/net.engine.onnx")
    manifests.write(named, manifests.path_of(path))


DAMAGES = [half, text, swapped, elsewhere, outside]
COMMANDS = {
    "parity": ["parity", "net.onnx", "net.engine", "--data", "x.npy"],
    "check": ["check"],
    "bundle": ["bundle", "net.engine", "-o", "out"],
}


def called(capsys, *words):
    code = main(list(words), standalone_mode=False)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_an_engine_whose_files_agree_is_taken(capsys, folder, words):
    assert called(capsys, *words)[0] in {0, None}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["parity", "check"])
def test_damaged_or_swapped_files_pass_no_gate(capsys, folder, name, damage):
    damage(folder)
    code, err = called(capsys, *COMMANDS[name])
    assert code == 1, err
    assert "net.engine" in err


@pytest.mark.parametrize("damage", [half, text])
@pytest.mark.parametrize("words", [["profile", "net.engine"], ["predict", "net.engine", "x.png"]])
def test_a_damaged_engine_is_named_before_the_missing_gpu(capsys, folder, words, damage):
    use_graphs.image(folder / "x.png")
    damage(folder)
    code, err = called(capsys, *words)
    assert code == 1
    assert "is not the engine" in err


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_fixture_of_pytest_takes_no_damaged_engine(folder, damage):
    data = np.load("x.npy")
    assert_parity("net.onnx", "net.engine", data=data)
    damage(folder)
    with pytest.raises(Exception, match=r"net\.engine") as e:
        assert_parity("net.onnx", "net.engine", data=data)
    assert type(e.value).__name__ == "BadArtifact"


@pytest.mark.parametrize("damage", [half, text, swapped])
@pytest.mark.parametrize("triton", [[], ["--triton"]], ids=["plain", "triton"])
def test_nothing_damaged_or_swapped_is_bundled(capsys, folder, damage, triton):
    damage(folder)
    code, err = called(capsys, *COMMANDS["bundle"], *triton)
    assert (code, (folder / "out").exists()) == (1, False), err
