"""Whether INT8 is worth it is read from two plans, and FP16 has its best one."""

import onnx_ir as ir
import pytest

from se_deploy import graph
from se_deploy.commands import benefit, lowering
from se_deploy.plan import Kernel, Plan, PlanTensor
from se_deploy.targets import resolve_target

INT8, FP16 = (
    graph.tidy(
        ir.from_onnx_text(
            f'<ir_version: 10, opset_import: ["" : 20]> {name} (float[N] x) => (float[N] y) {{ y = Relu(x) }}'
        )
    )
    for name in ("int8", "fp16")
)


def plan(kernels, kilobytes, target="sm86"):
    each = PlanTensor("t", "int8", (kilobytes * 1000 // kernels,))
    return Plan(
        "tensorrt-rtx", "1.7", target, tuple(Kernel(f"k{i}", "kgen", (each,), (), ()) for i in range(kernels))
    )


class Plans:
    """A planner that says what it is given."""

    def __init__(self, int8, fp16):
        self.said = {"int8": int8, "fp16": fp16}

    def plan(self, model):
        return self.said[model.graph.name]


@pytest.mark.parametrize(
    ("int8", "fp16", "worth_it", "words"),
    [
        (plan(10, 8000), plan(10, 9000), True, "moves less than the FP16 plan and takes less time"),
        (plan(40, 8000), plan(10, 8100), False, "moves less than the FP16 plan but takes no less time"),
        (plan(10, 9000), plan(10, 9000), False, "moves no less than the FP16 plan:"),
    ],
)
def test_int8_must_move_less_and_take_less_time(int8, fp16, worth_it, words):
    found = lowering.worth(INT8, FP16, planner=Plans(int8, fp16))
    assert found.worth_it is worth_it
    assert words in found.reason
    assert benefit.to_schema(found).recommended == ("int8" if worth_it else "fp16")
    assert bool(found.warnings) is not worth_it


def test_the_best_fp16_plan_at_hand_is_the_one_to_beat():
    planner = Plans(plan(10, 8000), plan(10, 9000))
    assert lowering.worth(INT8, FP16, planner=planner).worth_it
    better = lowering.worth(INT8, FP16, planner=planner, built=lowering.Planned(plan(5, 4000), FP16))
    assert not better.worth_it
    assert better.fp16.kernels == 5
    several = lowering.worth(
        INT8, FP16, planner=planner, built=lowering.Planned(plan(5, 4000, "sm80+sm86+sm89"), FP16)
    )
    assert several.fp16.kernels == 5, "an engine for several targets was planned for each of them"
    elsewhere = lowering.worth(
        INT8, FP16, planner=planner, built=lowering.Planned(plan(5, 4000, "sm120"), FP16)
    )
    assert elsewhere.worth_it, "a plan for another target says nothing"


def test_figures_that_differ_are_printed_so_that_they_differ():
    found = lowering.worth(INT8, FP16, planner=Plans(plan(1, 1511), plan(1, 1512)))
    assert "moves less" in found.reason
    assert "1.511 MB in 1 kernel against 1.512 MB" in found.reason


def test_the_roofline_is_that_of_the_device_named():
    planner = Plans(plan(1, 8000), plan(1, 9000))
    slow = lowering.worth(INT8, FP16, planner=planner, targets=[resolve_target("orin-nano")])
    fast = lowering.worth(INT8, FP16, planner=planner, targets=[resolve_target("a100")])
    assert (slow.device.name, fast.device.name) == ("orin-nano", "a100")
    assert slow.int8_ms > fast.int8_ms


def one_layer(name, width):
    """A graph whose only layer has this name and `width` squared multiply-accumulates, and its plan."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> {name} (float[N,{width}] x, float[{width},{width}] w) '
        f"=> (float[N,{width}] y) {{ y = MatMul(x, w) }}"
    )
    model = graph.tidy(ir.from_onnx_text(text))
    model.graph[0].name = name
    read = PlanTensor("x", "float16", (1,))
    return lowering.Planned(Plan("t", "1", "sm86", (Kernel(name, "gemm", (read,), (), (name,)),)), model)


def test_each_plan_is_weighed_by_the_arithmetic_of_its_own_graph():
    """A rewrite names layers anew, and no two of the three graphs need have the same rewrites."""
    int8, fp16, built = (
        one_layer(n, w) for n, w in (("int8", 20_000), ("fp16", 30_000), ("as_built", 10_000))
    )
    planner = Plans(int8.plan, fp16.plan)
    found = lowering.worth(int8.model, fp16.model, planner=planner)
    assert found.fp16_ms == pytest.approx(found.int8_ms * (30_000 / 20_000) ** 2)
    assert found.int8_ms > 0.001, "more than a launch"
    better = lowering.worth(int8.model, fp16.model, planner=planner, built=built)
    assert better.fp16_ms == pytest.approx(found.int8_ms / 4)


def test_a_search_for_a_device_counts_what_a_rewritten_graph_computes():
    made = one_layer("made_by_a_rewrite", 20_000)
    target = resolve_target("a100")
    found = lowering._cost([target])(made.model)(made.plan)
    assert found == pytest.approx(made.milliseconds(target.device))
    assert found == pytest.approx(2e3 * 20_000**2 / (target.device.fp16_tflops * 1e12))
    assert lowering._cost([resolve_target("sm100")]) is None, "planned bytes, where no figures are known"


@pytest.mark.parametrize(("int8", "fp16", "worth_it"), [(8000, 9000, True), (9000, 9000, False)])
def test_without_figures_of_the_target_there_is_no_roofline(int8, fp16, worth_it):
    planner = Plans(plan(10, int8, "sm100"), plan(10, fp16, "sm100"))
    found = lowering.worth(INT8, FP16, planner=planner, targets=[resolve_target("sm100")])
    assert (found.device, found.int8_ms, found.worth_it) == (None, None, worth_it)
    assert "no roofline: no figures are known of sm100" in found.reason
    assert "Orin" not in found.reason
    assert benefit.to_schema(found).device is None
