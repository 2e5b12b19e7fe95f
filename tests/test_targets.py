import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy import roofline, targets
from se_deploy.errors import BadInput
from se_deploy.plan import Kernel, Plan, PlanTensor


@pytest.mark.parametrize("device", targets.DEVICES, ids=lambda d: d.name)
def test_every_device_is_found_by_name_and_title(device):
    for text in (device.name, device.title, device.name.upper(), device.name.replace("-", "_")):
        assert targets.resolve_target(text) == targets.Target(f"sm{device.sm}", device.sm, device)


@pytest.mark.parametrize("device", targets.DEVICES, ids=lambda d: d.name)
def test_no_figure_stands_without_its_source(device):
    figures = (device.memory_gb_s, device.fp16_tflops, device.int8_tops, device.fp32_tflops)
    assert device.source is not None or set(figures) == {None}


@pytest.mark.parametrize("device", [d for d in targets.DEVICES if d.has_figures], ids=lambda d: d.name)
def test_fp32_is_that_of_the_cuda_cores_and_not_tf32(device):
    """TF32 is half of FP16 on matrix units, and Turing has none of it: no rate of it stands in the table."""
    assert device.fp32_tflops <= 0.51 * device.fp16_tflops
    assert targets.figures("sm75").fp32_tflops < 10


@given(st.integers(5, 12), st.integers(0, 9))
def test_a_capability_is_read_in_every_spelling(major, minor):
    wanted = targets.Target(f"sm{major}{minor}", major * 10 + minor)
    for text in (
        f"sm{major}{minor}",
        f"SM_{major}{minor}",
        f"{major}.{minor}",
        f"sm{major}.{minor}",
        f" {major}{minor} ",
    ):
        assert targets.resolve_target(text) == wanted


@pytest.mark.parametrize("text", ["", "orin", "sm", "86x", "gpu", "sm8"])
def test_what_is_neither_is_refused_with_the_list(text):
    with pytest.raises(BadInput, match="is no target") as caught:
        targets.resolve_target(text)
    assert "orin-nano" in caught.value.hint


def test_the_dla_is_refused_with_the_reason():
    with pytest.raises(BadInput, match="DLA"):
        targets.resolve_target("agx-orin-dla0")


DEVICE = targets.Device(
    "d", "D", 86, memory_gb_s=100, fp16_tflops=10, int8_tops=20, fp32_tflops=2.5, source="test"
)


def plan(*kernels):
    return Plan("tensorrt-rtx", "", "sm86", kernels)


def kernel(node, dtype, elements, *, weights=0, host_only=False):
    tensors = (PlanTensor(f"{node}.x", dtype, (elements,)),)
    constants = (PlanTensor(f"{node}.w", dtype, (weights,)),) if weights else ()
    return Kernel(node, "kgen", tensors, (), (node,), constants, host_only)


def test_a_kernel_takes_its_bytes_its_arithmetic_or_a_launch():
    moved = kernel("a", "float16", 50_000_000)  # 100 MB at 100 GB/s
    assert roofline.roofline_ms(plan(moved), {}, DEVICE) == pytest.approx(1.0)
    computed = kernel("b", "float16", 1, weights=1)
    assert roofline.roofline_ms(plan(computed), {"b": 5_000_000_000}, DEVICE) == pytest.approx(1.0)
    small = kernel("c", "float16", 1)
    assert roofline.roofline_ms(plan(small, small), {}, DEVICE, launch_us=3) == pytest.approx(0.006)
    assert roofline.roofline_ms(plan(kernel("s", "int64", 1, host_only=True)), {}, DEVICE) == 0


@pytest.mark.parametrize(
    ("dtype", "ms"), [("int8", 0.5), ("float16", 1.0), ("bfloat16", 1.0), ("float32", 4.0)]
)
def test_the_rate_is_that_of_the_type(dtype, ms):
    found = roofline.roofline_ms(plan(kernel("b", dtype, 1, weights=1)), {"b": 5_000_000_000}, DEVICE)
    assert found == pytest.approx(ms)


def test_arithmetic_of_a_node_in_two_kernels_counts_once():
    twice = plan(kernel("b", "float16", 1, weights=1), kernel("b", "float16", 1, weights=1))
    assert roofline.roofline_ms(twice, {"b": 5_000_000_000}, DEVICE, launch_us=0) == pytest.approx(
        1.0, rel=1e-6
    )


def product(inputs, *nodes):
    tensors = tuple(PlanTensor(name, "float16", (1,)) for name in inputs)
    return Kernel("+".join(nodes), "kgen", tensors, (), nodes)


def test_a_product_of_two_activations_is_arithmetic_too():
    """An attention's MatMul has no weights, and its kernel was taken to compute nothing."""
    counted = {"qk": 5_000_000_000, "b": 5_000_000_000}
    attention = product(["q", "k"], "qk", "softmax")
    assert roofline.roofline_ms(plan(attention), counted, DEVICE) == pytest.approx(1.0)
    packed = product(["qkv"], "qk", "softmax")
    assert roofline.roofline_ms(plan(packed), counted, DEVICE) == pytest.approx(1.0)
    copied = plan(product(["k"], "qk"), attention, product(["qk"], "qk"))
    assert roofline.roofline_ms(copied, counted, DEVICE, launch_us=0) == pytest.approx(1.0, rel=1e-6)
    in_fp32 = plan(kernel("qk", "float32", 1), attention)  # a Cast in front of it: the product is FP16
    assert roofline.roofline_ms(in_fp32, counted, DEVICE, launch_us=0) == pytest.approx(1.0, rel=1e-6)


def test_the_arithmetic_of_a_layer_is_where_its_weights_are():
    behind = plan(product(["x", "y"], "b"), kernel("b", "int8", 1, weights=1))
    assert roofline.roofline_ms(behind, {"b": 5_000_000_000}, DEVICE, launch_us=0) == pytest.approx(
        0.5, rel=1e-6
    )


def test_nothing_is_computed_from_figures_that_are_not_known():
    assert roofline.roofline_ms(plan(), {}, targets.resolve_target("thor").device) is None


@pytest.mark.parametrize(
    ("target", "device"), [("sm86", "rtx-3060"), ("sm87", "orin-nano"), ("sm90", "h100"), ("sm75", "t4")]
)
def test_a_target_without_a_device_stands_for_a_slow_one_of_its_kind(target, device):
    assert targets.figures(target).name == device


@pytest.mark.parametrize("target", ["sm72", "sm100", "sm103", "sm110", "sm121", "sm130", "cpu"])
def test_no_target_borrows_the_figures_of_another(target):
    assert targets.figures(target) is None
