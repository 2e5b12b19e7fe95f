"""Reconstruction trains what the Q/DQ graph computes and keeps what is better by more than its noise."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from ptq_graphs import FAST, RUNTIME, dataset, network

from se_deploy import data, graph
from se_deploy.backends import registry
from se_deploy.cli.main import main
from se_deploy.errors import MissingRuntime
from se_deploy.protocols import silent
from se_deploy.quantization import quantize
from se_deploy.quantization.reconstruction import Block, Request, Trained

pytest.importorskip("torch")
from se_deploy.backends.pytorch import reconstruction

SAME_DB = 55.0
"""Two runtimes round a few values to another level: what is left is far below INT8's noise, 20 to 40 dB."""


def task_of(tmp_path, policy="portable", batch="N", count=24):
    """The task that quantization hands to a trainer, and the Q/DQ graph of the layers before it."""
    seen = []

    def spy(task, *, seconds, progress):
        seen.append(task)
        return Trained(tuple(task.planned), ())

    options = dataclasses.replace(
        FAST, policy=registry.policy(policy), base_precision="fp32", reconstruct=Request(spy, 1.0)
    )
    result = quantize(network(batch), dataset(tmp_path, count), runtime=RUNTIME, options=options)
    assert not result.reconstruction.kept
    return seen[0], result.model


def decibels(exact, got):
    return 10 * np.log10((exact**2).sum() / max(((exact - got) ** 2).sum(), 1e-30))


def whole(trainer, *, quantized):
    values = dict(trainer.samples)
    for part in trainer.parts:
        layers = [(trainer.order[name], trainer.planned[name]) for name in part.layers]
        state = reconstruction._State(layers, frozenset()) if quantized else None
        values = {part.end.name: trainer._forward(part, values, state)}
    return part.end.name, values[part.end.name].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["portable", *[p for p in registry.policies() if p != "portable"]])
def test_what_is_trained_computes_what_the_file_does(tmp_path, policy):
    task, written = task_of(tmp_path, policy)
    trainer = reconstruction._Trainer(task)
    feeds = {name: tensor.numpy() for name, tensor in trainer.samples.items()}
    for model, quantized in ((task.model, False), (written, True)):
        name, got = whole(trainer, quantized=quantized)
        with RUNTIME.open(model) as session:
            exact = session.run(feeds)[name]
        assert decibels(exact, got) > SAME_DB


@pytest.mark.slow
def test_blocks_end_where_one_tensor_alone_is_alive(tmp_path):
    task, _ = task_of(tmp_path)
    parts = reconstruction._Trainer(task).parts
    assert sum(len(part.layers) for part in parts) == len(task.planned)
    inside = [{node.op_type for node in task.model.graph if node.name in part.layers} for part in parts]
    assert all(inside), "each block has a layer"
    names = [part.end.name for part in parts]
    assert names[-1] == task.model.graph.outputs[0].name
    assert all(part.starts == (before,) for before, part in zip(names, parts[1:], strict=False))


@pytest.mark.slow
def test_training_changes_roundings_and_keeps_int8(tmp_path):
    task, _ = task_of(tmp_path, count=48)
    trained = reconstruction.train(task, seconds=3, progress=silent)
    assert [layer.node for layer in trained.planned] == [layer.node for layer in task.planned]
    for before, after in zip(task.planned, trained.planned, strict=True):
        assert after.weight.dtype == np.int8
        assert after.weight.shape == before.weight.shape
        assert np.array_equal(after.weight_scale, before.weight_scale)
    for block in trained.blocks:
        assert block.reason or (block.before_db is not None and block.after_db is not None)
    changed = {
        a.node for b, a in zip(task.planned, trained.planned, strict=True) if (a.weight != b.weight).any()
    }
    kept = {name for block in trained.blocks if block.kept for name in block.layers}
    assert changed <= kept, "what was not kept is as it was"


@pytest.mark.slow
def test_layers_of_one_tensor_keep_one_scale(tmp_path):
    task, _ = task_of(tmp_path, count=48)
    trained = reconstruction.train(task, seconds=3, progress=silent)
    tensors = {layer.node: layer.tensor for layer in task.layers}
    scales = {}
    for layer in trained.planned:
        scales.setdefault(tensors[layer.node], set()).add(layer.params.scale)
    assert all(len(found) == 1 for found in scales.values())


def test_better_means_by_more_than_twice_the_noise():
    random = np.random.default_rng(0)
    before = random.uniform(1, 2, 64)
    assert reconstruction.is_better(before, before - 0.1)
    assert not reconstruction.is_better(before, before)
    assert not reconstruction.is_better(before, before + 0.1)
    assert not reconstruction.is_better(before, before - random.normal(0.01, 1, 64))


def test_too_few_samples_are_said(tmp_path):
    task, _ = task_of(tmp_path, count=6)
    blocks = reconstruction.train(task, seconds=1, progress=silent).blocks
    assert {block.kept for block in blocks} == {False}
    assert all("too few" in block.reason for block in blocks)


@pytest.mark.slow
def test_what_cannot_be_run_is_left_out_and_said(tmp_path):
    task, _ = task_of(tmp_path)
    for node in task.model.graph:
        if node.op_type == "HardSwish":
            node.op_type = "Unheard"
    blocks = reconstruction.train(task, seconds=1, progress=silent).blocks
    assert any("Unheard" in (block.reason or "") for block in blocks)


def test_trained_blocks_are_kept_only_where_the_network_is_better(tmp_path):
    def ruin(task, *, seconds, progress):
        planned = tuple(dataclasses.replace(layer, weight=-layer.weight) for layer in task.planned)
        return Trained(planned, (Block("y", (planned[0].node,), kept=True),))

    samples = dataset(tmp_path)
    plain = quantize(network(), samples, runtime=RUNTIME, options=FAST)
    options = dataclasses.replace(FAST, reconstruct=Request(ruin, 1.0))
    result = quantize(network(), samples, runtime=RUNTIME, options=options)
    assert not result.reconstruction.kept
    assert result.reconstruction.after_db < result.reconstruction.before_db
    assert graph.to_bytes(result.model) == graph.to_bytes(plain.model)


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "se_deploy.backends.pytorch.reconstruction", raising=False)
    monkeypatch.delitem(sys.modules, "se_deploy.backends.pytorch.graph_runner", raising=False)
    monkeypatch.setattr(sys.modules["se_deploy.backends.pytorch"], "reconstruction", None, raising=False)
    monkeypatch.delattr(sys.modules["se_deploy.backends.pytorch"], "reconstruction")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingRuntime) as caught:
        registry.trainer()
    assert "--reconstruct" in caught.value.message
    assert "[torch]" in caught.value.hint


@pytest.mark.slow
def test_the_command_states_what_was_kept(tmp_path, capsys):
    graph.save(network(), tmp_path / "net.onnx")
    samples = dataset(tmp_path, 48)
    assert isinstance(samples, data.Samples)
    words = ["quantize", str(tmp_path / "net.onnx"), "--calib-data", str(tmp_path / "x.npz")]
    words += ["-o", str(tmp_path / "q.onnx"), "--reconstruct", "4", "--json"]
    assert main(words, standalone_mode=False) in {0, None}
    found = json.loads(capsys.readouterr().out)["reconstruction"]
    assert found["seconds"] == 4
    assert {block["tensor"] for block in found["blocks"]}
    assert found["before_db"] > 0


def test_the_table_says_why_blocks_were_not_tried(tmp_path, capsys):
    graph.save(network(), tmp_path / "net.onnx")
    dataset(tmp_path, 4)
    words = ["quantize", str(tmp_path / "net.onnx"), "--calib-data", str(tmp_path / "x.npz")]
    words += ["-o", str(tmp_path / "q.onnx"), "--reconstruct", "4", "--no-verify"]
    assert main(words, standalone_mode=False) in {0, None}
    said = " ".join(capsys.readouterr().out.split())
    assert "not kept" in said
    assert "not tried: 3 samples are too few" in said
