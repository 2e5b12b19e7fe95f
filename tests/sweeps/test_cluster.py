"""Sweeps on a real Ray cluster of two nodes on loopback: what runs where, what is lost, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import needs
import numpy as np
import pytest
import ray_cluster
import rewrites_graphs
import use_graphs

from se_deploy import graph

pytestmark = [pytest.mark.slow, ray_cluster.NEEDED]
COMMAND = "from se_deploy.cli import main; main()"
STUBS = """
import json, sys
from pathlib import Path
import stub_steps
from se_deploy.sweeps import cluster
from se_deploy.sweeps.tasks import Task

store = Path(sys.argv[1]) if len(sys.argv) > 1 else None
source = Path("input.txt")
source.write_text("from far")
tasks = [
    Task("input", stub_steps.copy_input, "../input.txt", {"../input.txt": "hash"}),
    *(Task(f"{n}", stub_steps.write, f"{n} ", {}) for n in range(6)),
    *(
        Task(f"{n} {device}", stub_steps.write, device, {}, after=f"{n}", needs=device)
        for n in range(6)
        for device in ("sm86", "sm89")
    ),
    Task("nowhere", stub_steps.write, "", {}, needs="orin-nano"),
    Task("refused", stub_steps.refuse, "thing", {}),
    Task("behind it", stub_steps.write, "", {}, after="refused"),
    Task("too long", stub_steps.sleep, 600, {}, seconds=1),
    Task("dies", stub_steps.die, "", {}),
]
found = {}

def ended(outcome):
    text = None if outcome.output is None else (outcome.output / "text")
    found[outcome.key] = {
        "node": outcome.node, "attempts": outcome.attempts,
        "failure": outcome.failure and outcome.failure.kind,
        "text": text.read_text() if text and text.exists() else None,
    }

with cluster.opened("ray", retries=1, store=store) as joined:
    joined.run(tasks, {"hash": source}, ended=ended, count=lambda count: None)
    nodes = [[node.name, node.tags] for node in joined.nodes]
print(json.dumps({"nodes": nodes, "found": found}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ray_cluster.two_nodes(tmp_path_factory.mktemp("ray")) as running:
        yield running


def call(cluster, folder, *words, code=COMMAND):
    """Return what a process of this machine prints, as JSON, and its exit code."""
    tests = str(Path(__file__).parents[1])
    environment = cluster.environment
    environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{tests}:{Path(tests).parent}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


@pytest.mark.parametrize("store", [False, True], ids=["in Ray's memory", "in a shared folder"])
def test_a_device_gets_its_tasks_and_no_other(cluster, tmp_path, store):
    (tmp_path / "work").mkdir()
    (tmp_path / "shared").mkdir()
    words = [tmp_path / "shared"] if store else []
    made, _ = call(cluster, tmp_path / "work", *words, code=STUBS)
    owner = {tags[0]: name for name, tags in made["nodes"]}
    assert set(owner) == set(ray_cluster.DEVICES)
    found = made["found"]
    for n in range(6):
        for device, node in owner.items():
            one = found[f"{n} {device}"]
            assert (one["node"], one["text"]) == (node, f"{n} {device}"), one
        assert found[f"{n}"]["node"] in owner.values()
    assert found["input"]["text"] == "from far"
    kinds = {key: one["failure"] for key, one in found.items() if one["failure"]}
    assert kinds == {
        "nowhere": "NoWorker", "refused": "BadInput", "behind it": "BadInput", "too long": "TimeLimit",
        "dies": "LostWorker",
    }  # fmt: skip
    assert found["dies"]["attempts"] == 2
    if store:
        again, _ = call(cluster, tmp_path / "work", *words, code=STUBS)
        for key, one in again["found"].items():
            assert one["failure"] == found[key]["failure"]
            assert one["text"] == found[key]["text"]
            if one["failure"] is None:
                assert one["attempts"] == 0, f"{key} was there already"


def outcome(cell):
    """What of a cell does not depend on who worked on it, and when."""
    keys = (
        "model",
        "precision",
        "target",
        "batch",
        "folder",
        "reason",
        "key",
        "recommended",
        "recommendation",
    )
    same = {key: cell[key] for key in keys}
    same["verdicts"] = {gate: passed for gate, passed in cell["verdicts"].items() if gate != "latency"}
    left_out = {"size_bytes", "kept"}  # no two builds have the same bytes; who built first is chance
    same["artifacts"] = [{k: v for k, v in one.items() if k not in left_out} for one in cell["artifacts"]]
    return same


@needs.RTX
def test_a_sweep_is_the_same_as_here_though_a_worker_is_killed(cluster, tmp_path):
    for name, activation in (("a", "Relu"), ("b", "Elu"), ("c", "LeakyRelu")):
        use_graphs.save(tmp_path / f"{name}.onnx", use_graphs.SE.replace("Relu", activation))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))
    (tmp_path / "sweep.toml").write_text(
        'models = ["a.onnx", "b.onnx", "c.onnx"]\nprecisions = ["fp16", "int8"]\ntargets = ["sm86", "sm89"]\n'
        'calib_data = "x.npy"\nsearch_plans = 0\nwarmup_ms = 1\nduration_s = 0.02\n'
    )
    words = ("sweep", "sweep.toml", "--json", "-q")
    with cluster.killing_one("deploy") as killed:
        there, code = call(cluster, tmp_path, *words, "-o", "there", "--on", "ray")
    assert killed
    assert (code, there["done"], there["failed"]) == (0, 12, 0)
    here, _ = call(cluster, tmp_path, *words, "-o", "here")
    assert [outcome(cell) for cell in there["cells"]] == [outcome(cell) for cell in here["cells"]]
    owner = {node["tags"][0]: node["name"] for node in there["nodes"]}
    for cell in there["cells"]:
        *prepared, deployed = cell["steps"]
        assert deployed["node"] == owner[cell["target"]]
        assert {step["node"] for step in prepared} <= set(owner.values())
        kept = {one["path"] for one in cell["artifacts"] if one["kept"]}
        assert kept == ({"model.fp16.engine"} if cell["precision"] == "int8" else set()), "it went with Ray"
        names = {path.name for path in (tmp_path / "here" / cell["folder"]).iterdir()}
        assert {path.name for path in (tmp_path / "there" / cell["folder"]).iterdir()} == names
        for name in names:
            if name.endswith(".onnx"):
                ours, theirs = (tmp_path / at / cell["folder"] / name for at in ("there", "here"))
                assert ours.read_bytes() == theirs.read_bytes()
    again, code = call(cluster, tmp_path, *words, "-o", "there", "--on", "ray")
    assert (code, again["cached"]) == (0, 12)
    assert again["nodes"] == [], "nobody was asked to do anything"


JOBS = """
import json, sys
import stub_steps
from se_deploy.commands import on_workers
from se_deploy.errors import SeDeployError

with on_workers.opened("ray") as workers:
    found = {"width": workers.width}
    found["slow"] = workers.each(stub_steps.slower_first, 0.2, range(8), lambda done: None)
    found["once"] = workers.each(stub_steps.dies_once, "marker", [1, 2], lambda done: None)
    for function in (stub_steps.dies, stub_steps.refuses):
        try:
            workers.each(function, None, [1], lambda done: None)
        except SeDeployError as e:
            found[function.__name__] = [e.kind, e.message, e.hint]
    found["nodes"] = [share.node for share in workers.worked().shares]
print(json.dumps(found))
"""


def test_jobs_come_back_in_order_and_a_lost_one_is_done_once_more(cluster, tmp_path):
    found, _ = call(cluster, tmp_path, code=JOBS.replace('"marker"', repr(str(tmp_path / "marker"))))
    assert found["width"] == len(found["nodes"]) == 2, "both nodes did some"
    assert found["slow"] == list(range(8))
    assert found["once"] == [1, 2]
    assert found["dies"][0] == "LostWorker"
    assert "2 times" in found["dies"][1]
    assert found["refuses"] == ["BadInput", "no 1", "give one"]


def same_files(folder, *names):
    for name in names:
        assert (folder / f"here{name}").read_bytes() == (folder / f"there{name}").read_bytes()


@needs.RTX
def test_a_search_for_rewrites_is_the_same_as_here_though_a_worker_is_killed(cluster, tmp_path):
    graph.save(rewrites_graphs.bottlenecks(batch=1, count=3), tmp_path / "net.onnx")
    words = ("export", "net.onnx", "--runtime", "tensorrt-rtx", "--target", "sm86", "--json", "-q")
    here, _ = call(cluster, tmp_path, *words, "-o", "here.onnx")
    with cluster.killing_one("planned") as killed:
        there, code = call(cluster, tmp_path, *words, "-o", "there.onnx", "--on", "ray")
    assert killed
    assert code == 0
    same_files(tmp_path, ".onnx", ".rewrites.json")
    assert (here["on"], here["nodes"], there["on"]) == ("local", [], "ray")
    assert {one["name"] for one in there["nodes"]}
    assert sum(one["jobs"] for one in there["nodes"]) > 3
    assert all(here[key] == there[key] for key in here.keys() - {"onnx", "on", "nodes"})


def test_sensitivity_is_the_same_as_here(cluster, tmp_path):
    graph.save(rewrites_graphs.bottlenecks(batch=1, count=3), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((24, 16, 6, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    words = ("quantize", "net.onnx", "--calib-data", "x.npy", "--keep", "0.4", "--min-sqnr", "25", "--json")
    here, _ = call(cluster, tmp_path, *words, "-o", "here.onnx", "--calib-cache", "here.json")
    there, _ = call(
        cluster, tmp_path, *words, "-o", "there.onnx", "--calib-cache", "there.json", "--on", "ray"
    )
    same_files(tmp_path, ".onnx", ".json")
    assert here["kept"]
    assert all(here[key] == there[key] for key in here.keys() - {"onnx", "on", "nodes"})
    assert len(there["nodes"]) == 2, "both nodes did some"
