"""Jobs that are done elsewhere, in any order, give what they give here; what is unlike gets none."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import needs
import numpy as np
import onnx_ir as ir
import pytest
from ptq_graphs import samples_of

from se_deploy import graph
from se_deploy.commands import on_workers, packages, portable
from se_deploy.errors import BadInput, BuildFailed, RemoteFailed, UnsupportedGraph
from se_deploy.protocols import in_turn
from se_deploy.sweeps import jobs

NET = graph.tidy(
    ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "g (float[N,4] x) => (float[N,4] y) <float k = {1.5}> { h = Mul(x, k) y = Softmax(h) }"
    )
)


@pytest.fixture(autouse=True)
def node():
    """The compilers that a job leaves running end with its node, which here is the process of all tests."""
    yield
    if on_workers._keep_compilers.cache_info().currsize:
        on_workers._keep_compilers().close()
        on_workers._keep_compilers.cache_clear()


class Backwards:
    """Nodes that do the last job first, each from its bytes."""

    shares, left_out = (), ()

    def each(self, kind, shared, jobs, ended):
        jobs = list(jobs)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(kind.work, kind.load(shared), job) for job in reversed(jobs)]
            answers = [future.result() for future in waiting]
        ended(len(answers))
        return list(reversed(answers))


def double(shared, job):
    return shared * job


def refuse(_shared, job):
    raise UnsupportedGraph(f"no {job}", hint="give another")


def test_results_are_in_the_order_of_the_jobs():
    counts = []
    each = on_workers._OnNodes(Backwards())
    assert each(double, 3, range(6), counts.append) == in_turn(double, 3, range(6), counts.append)
    assert counts == [6, 1, 2, 3, 4, 5, 6]


def test_an_error_is_the_one_that_it_was():
    with pytest.raises(UnsupportedGraph, match="no thing") as raised:
        on_workers._OnNodes(Backwards())(refuse, None, ["thing"], lambda _: None)
    assert raised.value.hint == "give another"


def test_samples_and_graphs_travel_as_what_they_are(tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    few = dataclasses.replace(samples_of(tmp_path, x=x), labels=np.arange(9)).take([7, 1, 1, 3])
    there = portable.loads(portable.dumps({"samples": few, "model": NET}))
    (tmp_path / "x.npy").unlink(missing_ok=True)
    for size in (1, 3):
        for one, other in zip(there["samples"].batches(size), few.batches(size), strict=True):
            assert one.keys() == other.keys()
            for name, array in one.items():
                assert array.dtype == other[name].dtype
                np.testing.assert_array_equal(array, other[name])
    assert there["samples"].sha256 == few.sha256
    np.testing.assert_array_equal(there["samples"].labels, few.labels)
    assert graph.to_bytes(there["model"]) == graph.to_bytes(NET)


def test_a_compiler_that_refuses_a_graph_refuses_it_alone(monkeypatch):
    class Planner:
        def plan(self, model):
            if "Softmax" in graph.ops(model):
                raise BuildFailed("no softmax", hint="-")
            return SimpleNamespace(per_image=lambda sizes, images: (sizes, images))

    class Planning:
        @staticmethod
        def open(_target):
            return contextlib.nullcontext(Planner())

    plain = graph.tidy(
        ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]>\ng (float[2,4] x) => (float[2,4] y) { y = Relu(x) }'
        )
    )
    monkeypatch.setattr(on_workers.registry, "get", lambda _: SimpleNamespace(planning=Planning))
    workers = on_workers.Workers("ray", on_workers._OnNodes(Backwards()), 4, Backwards())
    asked = on_workers.Asked("toy", None, {"x": (2, 4)})
    with on_workers.planner(workers, Planning, asked) as planner:
        refusal, plan = planner.plan_each([NET, plain])
        assert planner.width == 4
        assert isinstance(refusal, BuildFailed)
        assert plan == ({"x": (2, 4)}, 2)
        assert planner.plan(plain) == plan
        with pytest.raises(BuildFailed, match="no softmax"):
            planner.plan(NET)


class Asked:
    """A cluster whose nodes answer what they are told to."""

    def __init__(self, *answers):
        self.answers = answers

    def asked(self, _question):
        return [(f"id{i}", f"10.0.0.{i}", answer) for i, answer in enumerate(self.answers)]


def test_only_nodes_that_compute_as_this_machine_does_get_jobs():
    own = on_workers.facts()
    assert {"numpy", "onnx", "processor"} <= own.keys()
    assert any(name.startswith("onnxruntime") for name in own)
    assert "torch" not in own, "no job needs it"
    other = own | {"numpy": "0.1"}
    found = jobs.opened(Asked(own, other), on_workers.facts)
    assert found.nodes == {"id0"}
    assert found.left_out == (
        f"the node 10.0.0.1 gets no job, results may differ there: numpy 0.1, here {own['numpy']}",
    )
    del other["numpy"]
    with pytest.raises(BadInput, match=r"no node of the cluster computes as this.*numpy missing"):
        jobs.opened(Asked(other), on_workers.facts)
    with pytest.raises(BadInput, match="none has a processor"):
        jobs.opened(Asked(), on_workers.facts)


def test_processors_are_told_apart_where_the_system_does_not_list_their_instructions(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu sse2 avx2 fma\n")
    monkeypatch.setattr(on_workers, "_INFO", info)
    assert on_workers.facts()["processor"].endswith(" with avx2 fma sse2")
    monkeypatch.setattr(on_workers, "_INFO", tmp_path / "none")
    config = {"SIMD Extensions": {"baseline": ["SSE"], "found": ["AVX2"], "not found": ["AVX512F"]}}
    found = []
    for names in (["AVX2"], ["AVX2", "AVX512F"], []):
        config["SIMD Extensions"]["found"] = names
        monkeypatch.setattr(np, "show_config", lambda mode: {"dicts": config}[mode])
        found.append(on_workers.facts()["processor"].partition(" with ")[2])
    assert found == [
        "what numpy calls AVX2",
        "what numpy calls AVX2 AVX512F",
        "what numpy calls its baseline",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(on_workers, "_INFO", tmp_path / "none")
    assert on_workers.facts()["processor"].startswith(f"{platform.machine()} with what numpy calls ")


@needs.RTX
def test_the_compilers_version_is_known_however_its_distribution_spells_its_name():
    assert packages.versions()["tensorrt-rtx"] == on_workers.facts()["tensorrt-rtx"]


def test_a_version_is_that_of_the_package_that_is_imported(tmp_path, monkeypatch):
    known = packages.versions()
    for name, text in (("numpy-0.1", "Name: NumPy\nVersion: 0.1\n"), ("half-1", "Version: 1\n")):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\n{text}")
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    assert packages.versions() == known
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    assert packages.versions() == known | {"numpy": "0.1"}


class Gone:
    """Ray, whose cluster went away between two searches."""

    def nodes(self):
        raise ConnectionError("the client is not connected")

    def put(self, _data):
        raise ConnectionError("the client is not connected")


def test_a_cluster_that_is_lost_before_its_next_jobs_is_an_error_in_words():
    each = on_workers._OnNodes(jobs.Jobs(SimpleNamespace(ray=Gone()), frozenset({"id0"})))
    with pytest.raises(RemoteFailed, match="the cluster was lost: the client is not connected"):
        each(double, 3, range(6), lambda _: None)


def test_where_nothing_could_be_done_side_by_side_it_is_said():
    worked = on_workers.Workers("ray", in_turn, 2, Backwards()).worked()
    assert any("--on ray had no effect" in text and "--min-sqnr" in text for text in worked.warnings)
    assert on_workers.HERE.worked() == on_workers.ALONE
