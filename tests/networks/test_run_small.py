"""Every small network goes the whole way: export, FP16, INT8, both engines, parity, latency, report."""

import pytest

pytest.importorskip("torch")


from se_deploy import schema
from se_deploy.commands.run import run, to_schema
from se_deploy.networks import NETWORKS, SqueezeExcite
from se_deploy.options import (
    CalibrationOptions,
    HostOptions,
    NetworkOptions,
    RewriteOptions,
    RunOptions,
    TargetOptions,
    TimingOptions,
)
from se_deploy.shipped import shipped

SMALL = [name for name, entry in NETWORKS.items() if entry.input_size[1] == 32]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_goes_the_whole_way(name, tmp_path):
    entry = NETWORKS[name]
    result = run(
        f"se_deploy:{name}",
        tmp_path,
        calibration=CalibrationOptions(data=shipped("calibration-images-idx3-ubyte.gz"), samples=32),
        options=RunOptions(
            data=shipped("heldout-images-idx3-ubyte.gz"),
            network=NetworkOptions(
                checkpoint=shipped(entry.checkpoint) if entry.checkpoint else None, opset=17
            ),
            target=TargetOptions(rewrites=RewriteOptions(search_plans=8)),
            host=HostOptions(threads=1),
            timing=TimingOptions(warmup_ms=20, duration_s=0.2, iterations=3),
        ),
    )
    said = schema.builtins(to_schema(result))
    blocks = sum(isinstance(part, SqueezeExcite) for part in entry.build().modules())
    assert len([b for b in said["export"]["blocks"] if b["kind"] == "se"]) == blocks
    passed = {candidate["path"]: candidate["passed"] for candidate in said["parity"]["candidates"]}
    assert passed["model.onnx"]
    assert passed["model.fp16.onnx"]
    assert {"model.fp16.engine", "model.int8.engine", "report.html"} <= {p.name for p in tmp_path.iterdir()}
    frozen = said["export"]["frozen"]
    assert len(frozen) == (blocks if name.startswith("adaptive") else 0)
    assert all(found["hidden"] <= found["available"] for found in frozen)
