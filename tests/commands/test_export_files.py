"""The files of an export: what stands in their way is said before the work, and what is stale goes."""

from __future__ import annotations

import json

import pytest
from onnx import numpy_helper
from se_graphs import Recipe, build

from se_deploy.cli import main
from se_deploy.commands import lowering, source
from se_deploy.passes import search

DEAD = 1  # a hidden unit that nothing reads: a rewrite of the portable form removes it


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, dead in (("dead.onnx", True), ("net.onnx", False)):
        proto = build(Recipe(spatial=(6, 6)))[0]
        if dead:
            fc2 = next(t for t in proto.graph.initializer if list(t.dims) == [8, 4, 1, 1])
            array = numpy_helper.to_array(fc2).copy()
            array[:, DEAD] = 0
            fc2.CopyFrom(numpy_helper.from_array(array, fc2.name))
        (tmp_path / name).write_bytes(proto.SerializeToString())
    return tmp_path


def export(capsys, *words):
    code = main(["export", *words, "--json", "-q"], standalone_mode=False)
    return code, json.loads(capsys.readouterr().out)


def refuse_work(monkeypatch):
    def worked(*_args, **_options):
        raise AssertionError("the work began")

    monkeypatch.setattr(lowering, "lowered", worked)
    monkeypatch.setattr(source, "read", worked)


def test_the_list_of_rewrites_is_claimed_before_the_work(folder, capsys, monkeypatch):
    (folder / "o.rewrites.json").write_text("mine", "utf-8")
    refuse_work(monkeypatch)
    code, said = export(capsys, "dead.onnx", "-o", "o.onnx")
    assert code == 1
    assert "'o.rewrites.json' exists already" in said["error"]["message"]
    assert (folder / "o.rewrites.json").read_text("utf-8") == "mine"
    code, said = export(capsys, "dead.onnx", "-o", "o.onnx", "--dry-run")
    assert "'o.rewrites.json' exists already" in said["error"]["message"]


def test_a_folder_in_its_place_is_refused_before_the_work(folder, capsys, monkeypatch):
    (folder / "o.rewrites.json").mkdir()
    refuse_work(monkeypatch)
    code, said = export(capsys, "dead.onnx", "-o", "o.onnx", "--overwrite")
    assert code == 1
    assert "'o.rewrites.json' is a folder" in said["error"]["message"]


def test_an_export_without_rewrites_leaves_no_list_of_an_earlier_one(folder, capsys):
    assert export(capsys, "dead.onnx", "-o", "o.onnx")[0] == 0
    assert (folder / "o.rewrites.json").is_file()
    assert export(capsys, "net.onnx", "-o", "o.onnx", "--overwrite")[0] == 0
    assert not (folder / "o.rewrites.json").exists()


def test_the_list_beside_a_file_may_be_replayed_into_it(folder, capsys):
    assert export(capsys, "dead.onnx", "-o", "o.onnx")[0] == 0
    choices = (folder / "o.rewrites.json").read_text("utf-8")
    (folder / "o.onnx").unlink()
    code, said = export(capsys, "dead.onnx", "-o", "o.onnx", "--replay", "o.rewrites.json", "--dry-run")
    assert code == 0, said
    code, said = export(capsys, "dead.onnx", "-o", "o.onnx", "--replay", "o.rewrites.json")
    assert code == 0, said
    assert (folder / "o.rewrites.json").read_text("utf-8") == choices


def test_a_list_that_was_replayed_is_the_users_and_stays(folder, capsys):
    """Without a choice in it nothing is written in its place, and it must not be taken for a stale one."""
    (folder / "o.rewrites.json").write_text(search.to_json(()), "utf-8")
    code, said = export(capsys, "net.onnx", "-o", "o.onnx", "--replay", "o.rewrites.json")
    assert code == 0, said
    assert (folder / "o.rewrites.json").is_file()


def test_a_frozen_batch_is_not_called_dynamic(folder, capsys):
    proto = build(Recipe(spatial=(6, 6)))[0]
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    (folder / "four.onnx").write_bytes(proto.SerializeToString())
    code, said = export(capsys, "four.onnx", "-o", "out.onnx", "--batch", "dynamic")
    assert (code, said["error"]["kind"]) == (1, "BadInput")
    assert "frozen at batch 4" in said["error"]["message"]
    assert not (folder / "out.onnx").exists()
    assert export(capsys, "four.onnx", "-o", "out.onnx")[0] == 0  # unasked it stays as it is
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    (folder / "free.onnx").write_bytes(proto.SerializeToString())
    assert export(capsys, "free.onnx", "-o", "free.out.onnx", "--batch", "dynamic")[0] == 0
