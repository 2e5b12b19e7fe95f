"""Options of a build: TensorRT-RTX builds for real on this CPU, full TensorRT is what fake_nvidia tells."""

import dataclasses

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.tensorrt import features, gpu
from se_deploy.backends.tensorrt.command import build_command
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from se_deploy.backends.tensorrt.sparsity import sparse_layers
from se_deploy.errors import BadInput
from se_deploy.options import EngineFeatures
from se_deploy.schema.files import ShapeRange

IMAGE = (plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE)
LEVELS = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx")
    compiler = Compiler("tensorrt-rtx")
    yield compiler
    compiler.close()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "here", lambda: None)


def built(rtx, model=None, **asked):
    return rtx.build(
        model or plan_graphs.se_net(dtype="float16"), BuildOptions(features=EngineFeatures(**asked))
    )


@pytest.mark.parametrize(
    "asked",
    [{"tf32": True}, {"optimization_level": 0}, {"optimization_level": 5}, {"sparsity": True},
     {"weight_streaming": True}],
)  # fmt: skip
def test_rtx_builds_with_what_it_takes(rtx, asked):
    made = built(rtx, **asked)
    assert made.data.startswith(TENSORRT_RTX.magic)
    assert made.features == EngineFeatures(**asked)
    assert made.plan.kernels == 7


def test_tf32_is_no_default_and_another_engine():
    """The flag reaches the compiler: FP32 engines with and without it differ."""
    pytest.importorskip("tensorrt_rtx")
    engines = []
    for tf32 in (False, False, True):
        compiler = Compiler("tensorrt-rtx")
        engines.append(built(compiler, plan_graphs.se_net(), tf32=tf32).data)
        compiler.close()
    assert [len(e) for e in engines[:2]] == [len(engines[0])] * 2
    assert engines[2] != engines[0]


@pytest.mark.parametrize(("form", "kernels"), [("LINEAR", 7), ("HWC", 6), ("HWC8", 6), ("CHW32", 7)])
def test_an_input_as_the_first_kernel_wants_it_saves_a_copy(rtx, form, kernels):
    made = built(rtx, io_formats={"x": form})
    assert made.plan.kernels == kernels
    first = next(k for k in made.plan.layers if not k.host_only)
    assert (first.kind == "correlation") == (kernels == 6)


def test_each_profile_has_its_range_and_the_plan_is_the_first_ones(rtx):
    model = plan_graphs.se_net()
    ranges = [{"x": ShapeRange((n, *IMAGE), (n, *IMAGE), (n, *IMAGE))} for n in (1, 8)]
    one, two = (
        rtx.build(model, BuildOptions(shapes=ranges[0], more_shapes=more)) for more in ((), (ranges[1],))
    )
    assert two.plan.kernels == one.plan.kernels
    assert {t.dims[0] for k in two.plan.layers for t in k.inputs} == {1}
    assert two.more_shapes == (ranges[1],)
    assert len(two.data) > len(one.data)
    assert "the plan is that of the first optimization profile" in two.warnings


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"version_compatible": True}, "--version-compatible: TensorRT-RTX .* has no lean runtime"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility: TensorRT-RTX .* ignores it"),
        ({"refit": True}, "--refit: TensorRT-RTX .* fails inside without a GPU"),
        ({"strip_weights": True}, "--strip-weights: TensorRT-RTX .* fails inside without a GPU"),
        ({"dla_core": 0}, "--dla-core: TensorRT-RTX .* builds for the GPU alone"),
        ({"plugins": ("boxes.so",)}, "--plugin: TensorRT-RTX .* takes no plug-ins"),
        ({"best_of": 2}, "--best-of: TensorRT-RTX .* times no kernels"),
    ],
)
def test_what_rtx_cannot_do_is_refused_before_a_build(rtx, no_gpu, asked, said):
    with pytest.raises(BadInput, match=said) as caught:
        rtx.check_features(EngineFeatures(**asked))
    assert caught.value.hint


def test_where_a_gpu_is_rtx_is_asked_to_refit():
    asked = EngineFeatures(refit=True, strip_weights=True)
    features.check(asked, TENSORRT_RTX, "1.7", device=True, levels=LEVELS)


@pytest.mark.parametrize("feature", features.FEATURES, ids=lambda f: f.option)
def test_full_tensorrt_takes_every_option(feature):
    everything = EngineFeatures(
        tf32=True, optimization_level=5, version_compatible=True, hardware_compatibility="ampere-plus",
        sparsity=True, refit=True, strip_weights=True, weight_streaming=True, dla_core=0,
        io_formats={"x": "HWC8"}, plugins=("boxes.so",), best_of=2,
    )  # fmt: skip
    features.check(everything, TENSORRT, "10.13", device=True, levels=LEVELS)
    assert feature.asked(everything) or feature.option == "--timing-cache"
    assert not feature.asked(EngineFeatures())


@pytest.mark.parametrize(
    ("asked", "device", "said"),
    [
        ({"hardware_compatibility": "same-compute-capability"}, True, "10.3 does not know it"),
        ({"best_of": 2}, False, "there is none here"),
    ],
)
def test_what_a_release_or_a_machine_lacks_is_refused(asked, device, said):
    with pytest.raises(BadInput, match=said):
        features.check(EngineFeatures(**asked), TENSORRT, "10.3", device=device, levels=LEVELS[:2])


def test_every_field_is_an_option_of_the_table():
    fields = {field.name for field in dataclasses.fields(EngineFeatures)}
    named = {feature.option.removeprefix("--").replace("-", "_") for feature in features.FEATURES}
    alike = {"io_format": "io_formats", "plugin": "plugins"}
    assert fields == {alike.get(name, name) for name in named} - {"timing_cache"}


def test_sparse_weights_are_seen_and_dense_ones_are_said(rtx):
    model = plan_graphs.se_net(dtype="float16")
    assert sparse_layers(model) == ()
    assert any("--sparsity changes nothing" in w for w in built(rtx, model, sparsity=True).warnings)
    weights = model.graph.initializers["w"].const_value.numpy().copy()
    weights.reshape(*weights.shape[:1], -1, 4, *weights.shape[2:])[:, :, 1:3] = 0
    model.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    assert sparse_layers(model) == ("n_m",)
    assert not any("--sparsity" in w for w in built(rtx, model, sparsity=True).warnings)
    weights[0, 0] = weights[0, 1] = weights[0, 2] = np.float16(1)
    model.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    assert sparse_layers(model) == ()


def test_nvidias_own_command_says_the_same(rtx):
    made = built(rtx)
    said = EngineFeatures(
        optimization_level=4, version_compatible=True, hardware_compatibility="ampere-plus", sparsity=True,
        refit=True, strip_weights=True, weight_streaming=True, dla_core=1, plugins=(),
    )  # fmt: skip
    full = dataclasses.replace(made, runtime="tensorrt", features=said)
    words = set(build_command("net.engine", "net.onnx", full).split())
    assert words >= {
        "--noTF32", "--builderOptimizationLevel=4", "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+", "--sparsity=enable", "--refit", "--stripWeights",
        "--allowWeightStreaming", "--useDLACore=1", "--allowGPUFallback",
    }  # fmt: skip
    assert "--noTF32" not in build_command(
        "e", "o", dataclasses.replace(full, features=EngineFeatures(tf32=True))
    )
    more = {"x": ShapeRange((8, *IMAGE), (8, *IMAGE), (8, *IMAGE))}
    twice = build_command("e", "o", dataclasses.replace(full, more_shapes=(more,))).split()
    assert twice.index("--profile=0") < twice.index("--profile=1")
    assert "--optShapes=x:8x32x14x14" in twice
