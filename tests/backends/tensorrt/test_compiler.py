import importlib.util
import os
import signal
import time

import onnx_ir as ir
import plan_graphs
import pytest
from se_graphs import written

from se_deploy import graph, once
from se_deploy.backends import keeping
from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.tensorrt import gpu
from se_deploy.backends.tensorrt.command import build_command
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.errors import BadInput, BuildFailed, MissingRuntime
from se_deploy.schema.files import ShapeRange
from se_deploy.targets import resolve_target

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def rtx():
    compiler = Compiler("tensorrt-rtx")
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def built(rtx):
    return rtx.build(plan_graphs.se_net())


def test_builds_an_engine_and_says_what_is_in_it(built):
    assert built.data.startswith(b"vtrt")
    assert (built.plan.runtime, built.plan.target) == ("tensorrt-rtx", "sm86")
    assert {"n_f1", "n_f2", "n_s"} <= {node for layer in built.plan.layers for node in layer.onnx_nodes}
    assert built.seconds > 0
    assert built.skipped_tactics == 0


def test_a_plan_without_an_engine_is_the_same(rtx, built):
    """Up to its calls for shapes and its numbers, which the compiler does not write alike in every build."""
    planned = rtx.plan(plan_graphs.se_net())

    def launched(plan):
        kernels = [k for k in plan.layers if not k.host_only]
        tensors = [[(t.dtype, t.dims, t.layout) for t in (*k.inputs, *k.outputs)] for k in kernels]
        whose = (plan.runtime, plan.version, plan.target)
        return whose, [(k.kind, k.onnx_nodes) for k in kernels], tensors

    assert launched(planned) == launched(built.plan)
    assert planned.activation_bytes == built.plan.activation_bytes


def test_the_squeeze_copies_the_map_unless_it_is_respelled(rtx):
    gap, nhwc = (rtx.plan(plan_graphs.se_net(pool)) for pool in ("gap", "nhwc"))
    assert nhwc.kernels == gap.kernels - 1
    assert nhwc.activation_bytes < gap.activation_bytes


def test_the_compiler_s_own_warnings_are_quoted_as_its_words(rtx):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"""
    built = rtx.build(graph.tidy(ir.from_onnx_text(text)))
    assert built.warnings
    assert all(warning.startswith("TensorRT-RTX says: ") for warning in built.warnings)


def test_progress_is_reported_and_ends(rtx):
    seen = []
    rtx.build(plan_graphs.se_net(), progress=lambda *step: seen.append(step))
    name, done, total = seen[-1]
    assert name
    assert done == total


@pytest.mark.parametrize("target", ["orin-nano", "h100", "sm53", "8.7"])
def test_targets_of_full_tensorrt_only_are_refused(rtx, target):
    with pytest.raises(BadInput, match="no target of TensorRT-RTX") as caught:
        rtx.build(plan_graphs.se_net(), BuildOptions(targets=(resolve_target(target),)))
    assert "TensorRT" in caught.value.hint


def test_full_tensorrt_builds_for_its_own_device_only(rtx, monkeypatch):
    monkeypatch.setattr(rtx, "targets", ())  # as full TensorRT says of itself
    monkeypatch.setattr(rtx, "device", "sm87")
    rtx.check_target(resolve_target("orin-nano"))
    with pytest.raises(BadInput, match="builds for the device that it runs on, sm87") as caught:
        rtx.check_target(resolve_target("sm90"))
    assert "on that device itself" in caught.value.hint


@pytest.mark.parametrize(
    ("second", "kept"),
    [(gpu.Gpu("A10", 86, 600.0), True), (gpu.Gpu("RTX 3090", 86, 936.0), False), (None, False)],
)
def test_an_engine_for_the_gpu_at_hand_is_kept_for_that_gpu_alone(rtx, monkeypatch, tmp_path, second, kept):
    """Without CUDA's bindings nobody knows the GPU: another one of the same store would get its engine."""
    monkeypatch.setattr(rtx, "targets", ())  # as full TensorRT says of itself
    ask = rtx._process.ask
    monkeypatch.setattr(
        rtx._process, "ask", lambda asked, progress: ask(asked | {"targets": ["sm86"]}, progress)
    )
    for number, device in enumerate((second and gpu.Gpu("A10", 86, 600.0), second)):
        monkeypatch.setattr(gpu, "here", lambda device=device: device)
        with once.kept_in(tmp_path):
            assert rtx.build(plan_graphs.se_net()).kept == (kept and number == 1)


def test_a_device_name_stands_for_its_capability(rtx):
    plan = rtx.plan(
        plan_graphs.se_net(), BuildOptions(targets=(resolve_target("rtx-4090"), resolve_target("sm86")))
    )
    assert plan.target == "sm89+sm86"


def test_the_compilers_own_reason_is_passed_on(rtx):
    model = plan_graphs.quantized_net(per_channel=False)
    model.graph.initializers["zx"].const_value = ir.tensor(3, dtype=ir.DataType.INT8, name="zx")
    with pytest.raises(BuildFailed, match=r"(?i)zero point") as caught:
        rtx.plan(model)
    assert "symmetric" in caught.value.hint


def test_an_operator_that_it_lacks_is_named_with_the_ways_around_it(rtx):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[8] x) => (int64[1, K] y) { y = NonZero(x) }"""
    with pytest.raises(BuildFailed, match="NonZero") as caught:
        rtx.build(graph.tidy(ir.from_onnx_text(text)))
    assert "outside of the graph" in caught.value.hint


def test_too_little_workspace_fails_with_the_way_out(rtx):
    with pytest.raises(BuildFailed) as caught:
        rtx.build(plan_graphs.se_net(), BuildOptions(workspace_bytes=1))
    assert "--workspace" in caught.value.hint


def test_a_timing_cache_is_ignored_aloud(rtx, tmp_path):
    options = BuildOptions(timing_cache=tmp_path / "cache")
    assert "timing cache" in rtx.build(plan_graphs.se_net(), options).warnings[0]
    assert not options.timing_cache.exists()


@pytest.mark.parametrize(
    ("targets", "warned"), [(("sm75",), False), (("sm75", "sm86"), True), (("sm86",), False)]
)
def test_turing_among_others_is_warned_of(rtx, targets, warned):
    made = rtx.build(plan_graphs.se_net(), BuildOptions(targets=tuple(map(resolve_target, targets))))
    assert any("sm75 apart" in warning for warning in made.warnings) == warned


def test_a_killed_compiler_is_an_error_and_the_next_build_works():
    compiler = Compiler("tensorrt-rtx")

    def kill(*_):
        os.kill(compiler._process.pid, signal.SIGKILL)

    with pytest.raises(BuildFailed, match="was killed"):
        compiler.build(plan_graphs.se_net(), progress=kill)
    assert compiler.plan(plan_graphs.se_net()).kernels > 0
    compiler.close()


def test_an_interrupt_ends_the_compiler():
    compiler = Compiler("tensorrt-rtx")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiler.build(plan_graphs.se_net(), progress=interrupt)
    assert not compiler._process.alive


def test_one_process_serves_the_compilers_of_a_command_one_after_the_other():
    with keeping.kept():
        with keeping.kept():
            first = Compiler("tensorrt-rtx")
            beside = Compiler("tensorrt-rtx")
            assert beside._process.pid != first._process.pid
            first.close()
            second = Compiler("tensorrt-rtx")
            assert second._process.pid == first._process.pid
            assert second.plan(plan_graphs.se_net()).kernels > 0
            second.close()
        assert second._process.alive, "the outer scope goes on"
        os.kill(second._process.pid, signal.SIGKILL)
        while second._process.alive:
            time.sleep(0.01)
        third = Compiler("tensorrt-rtx")
        assert third._process.pid != first._process.pid, "a dead one serves nobody"
        third.close()
        assert third._process.alive
    assert not third._process.alive
    assert beside._process.alive, "it was not given back"
    beside.close()
    assert not beside._process.alive, "outside a scope it ends at once"


def test_int8_needs_a_compiler_that_can(rtx, monkeypatch):
    monkeypatch.setattr(rtx, "version", "1.6.1.120")
    with pytest.raises(BuildFailed, match="cannot build INT8"):
        rtx.plan(plan_graphs.quantized_net(per_channel=False))
    assert rtx.plan(plan_graphs.se_net()).kernels > 0


def test_a_missing_compiler_comes_with_the_command_that_installs_it():
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("full TensorRT is installed here")
    with pytest.raises(MissingRuntime) as caught:
        Compiler("tensorrt")
    assert "pip install" in caught.value.hint


def test_shapes_given_are_the_shapes_built(rtx):
    wide = ShapeRange((1, 32, 14, 14), (4, 32, 14, 14), (8, 32, 14, 14))
    options = BuildOptions(shapes={"x": wide}, workspace_bytes=1 << 30)
    made = rtx.build(plan_graphs.se_net(), options)
    assert made.shapes == {"x": wide}
    assert made.workspace_bytes == 1 << 30


@pytest.mark.parametrize(("batch", "flagged"), [((1, 4), True), ((2, 2), True), (None, False)])
def test_nvidias_own_command_names_the_shapes_of_what_is_free(rtx, batch, flagged):
    dims, shapes = "1", {}
    if batch is not None:
        dims, shapes = "N", {"x": ShapeRange((batch[0], 32, 14, 14), (2, 32, 14, 14), (batch[1], 32, 14, 14))}
    built = rtx.build(plan_graphs.se_net(batch=dims), BuildOptions(shapes=shapes))
    assert ("--optShapes=x:2x32x14x14" in build_command("e", "o", built)) == flagged


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed", "free memory"),
        ("import os; os._exit(3)", "exit status 3", "install it again: pip install"),
    ],
)
def test_a_compiler_that_dies_while_it_starts_is_not_called_missing(tmp_path, monkeypatch, code, said, hint):
    (tmp_path / "tensorrt_rtx.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BuildFailed, match=f"died while it started.*{said}") as caught:
        Compiler("tensorrt-rtx")
    assert hint in caught.value.hint


def test_what_is_not_installed_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "tensorrt_rtx.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorrt_rtx'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingRuntime, match="TensorRT-RTX is not installed here"):
        Compiler("tensorrt-rtx")


def test_a_refused_node_inside_of_an_if_names_the_if(rtx):
    body = """
        s = Shape(x) k = Constant<value = int64[4] {1, 3, 4, 4}>() e = Equal(s, k) c = Cast<to = 6>(e)
        m = ReduceMin<keepdims = 0>(c) t = Cast<to = 9>(m)
        y = If (t) <then_branch = one () => (float[N,3,4,4] a) { a = Neg(x) },
                    else_branch = other () => (float[N,3,4,4] b) {
                        d = Det(x) u = Unsqueeze(d, ends) b = Mul(x, u) }>"""
    model = written(body, x="float[N,3,4,4] x", constants="int64[2] ends = {2, 3}")
    with pytest.raises(BuildFailed, match="refused the network") as refused:
        rtx.build(model)
    assert "inside of If" in refused.value.hint
    assert "checkMacros" not in refused.value.message
