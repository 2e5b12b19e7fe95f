import dataclasses

import pytest
from ptq_graphs import network

from se_deploy import quantization, se_blocks, targets
from se_deploy.quantization import layer_cost, layers


def test_a_layer_costs_what_the_roofline_of_the_device_says():
    pointwise, device = _layer(macs=1_000_000, elements=1_000_000), targets.resolve_target("a10").device
    heavy = _layer(macs=10**9, elements=1_000_000)
    # 600 GB/s; 125 TFLOPS in FP16 and 250 TOPS in INT8: the first is bound by its bytes, the second is not
    assert layer_cost.fp16_overhead_ms(pointwise, device) == pytest.approx(1e6 / 600e9 * 1e3)
    assert layer_cost.fp16_overhead_ms(heavy, device) == pytest.approx(
        2e9 / 125e12 * 1e3 - 2e9 / 250e12 * 1e3
    )
    assert layer_cost.fp16_overhead_ms(heavy, None) > layer_cost.fp16_overhead_ms(heavy, device), (
        "a Jetson is slower"
    )
    given = [targets.resolve_target(name) for name in ("sm86", "xavier-nx", "a10")]
    assert layer_cost.roofline_device(given) is device
    assert layer_cost.roofline_device(given[:1]) is targets.figures("sm86")
    assert layer_cost.roofline_device(given[1:2]) is None


def _layer(*, macs, elements):
    layer = layers.collect(network(), se_blocks.detect(network()), quantization.PORTABLE).quantizable[0]
    return dataclasses.replace(layer, macs=macs, elements=elements)
