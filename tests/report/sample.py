"""A report as an early version of `se-deploy demo` wrote it, values rounded; small edits make the others.

It stays JSON as it was written, without the keys that came later: what is read here is an old file.
"""

from __future__ import annotations

import copy

from se_deploy import schema
from se_deploy.errors import BadInput

WIDTHS = (16, 16, 16, 32, 32, 32, 64, 64, 64)
TOOL = "0.1.0"


def typed(fields, name="demo"):
    """The object that the fields of a file hold."""
    return schema.convert(fields, schema.OBJECTS[name], what="'report.json'", error=BadInput, hint="-")


def head(command):
    return {"schema": f"se-deploy/{command}/1", "tool_version": TOOL, "warnings": []}


def block(index, channels):
    return {
        "output": f"layer{index // 3 + 1}.{index % 3}.se.scaled",
        "kind": "se",
        "channels": channels,
        "reduced": channels // 4,
        "ratio": 4.0,
        "activation": "relu",
        "gate": "sigmoid",
        "form": "conv",
        "spelling": ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"],
        "squeeze_input": f"layer{index // 3 + 1}.{index % 3}.conv2",
        "scale_node": f"Mul:layer{index // 3 + 1}.{index % 3}.se.scaled",
        "params": 2 * channels * (channels // 4) + channels + channels // 4,
        "placement": "linear-conv",
        "followed_by": "residual-add",
    }


def blocks(count=9):
    return [block(i, WIDTHS[i % 9]) for i in range(count)]


def plan(runtime, target, precision, *, kernels, megabytes, split=(), count=9):
    def verdict(index, b):
        reasons = []
        if index in split:
            reasons = [
                "copy NHWC to NCHW before ReduceMean: respell the squeeze",
                "FP32 convolution from per-channel Q/DQ: use per-tensor weights for this target",
            ]
        return {
            "output": b["output"],
            "verdict": "split" if index in split else "fused",
            "kernels": 6 if index in split else 4,
            "activation_bytes": 2 * b["channels"] * (32 * 16 // b["channels"]) ** 2 * 3,
            "reasons": reasons,
        }

    return {
        "runtime": runtime,
        "version": {"tensorrt-rtx": "1.7.1.116", "onnxruntime": "1.31.1"}[runtime],
        "target": target,
        "precision": precision,
        "kernels": kernels,
        "activation_bytes": int(megabytes * 1e6),
        "weight_bytes": 551_312,
        "layers": [],
        "blocks": [verdict(i, b) for i, b in enumerate(blocks(count))],
    }


def candidate(
    path, preset, *, max_abs, sqnr_db, cosine, top1, accuracy, checked_as=None, outputs=("output",)
):
    return {
        "path": path,
        "passed": True,
        "preset": preset,
        "samples": 1000,
        "accuracy": accuracy,
        "checked_as": checked_as,
        "failures": [],
        "outputs": [
            {
                "name": name,
                "max_abs": max_abs,
                "max_rel": max_abs / 21.4,
                "cosine": cosine,
                "sqnr_db": sqnr_db,
                "top1_agreement": top1,
                "passed": True,
            }
            for name in outputs
        ],
        "first_divergence": None,
    }


def timing(path, runtime, batch, p50, *, speedup=None):
    return {
        "path": path,
        "runtime": runtime,
        "device": "cpu, 2 threads",
        "batch": batch,
        "p50_ms": p50,
        "p90_ms": p50 * 1.11,
        "p99_ms": p50 * 1.42,
        "mean_ms": p50 * 1.04,
        "std_ms": p50 * 0.09,
        "throughput_per_s": 1000 * batch / p50,
        "samples": 642,
        "stable": True,
        "power_w": None,
        "energy_mj": None,
        "speedup_vs_reference": speedup,
    }


def waterfall():
    """Nine blocks respelled, then the whole graph's activations, as `build-engine` reports them."""
    size, kernels = 2_214_016, 68
    steps = [{"rewrite": "as given", "block": None, "kernels": kernels, "activation_bytes": size}]
    for index, b in enumerate(blocks()):
        size, kernels = size - 2 * b["channels"] * (32 * 16 // b["channels"]) ** 2 * 2, kernels - 1
        steps.append(
            {
                "rewrite": "squeeze over NHWC",
                "block": b["output"],
                "kernels": kernels,
                "activation_bytes": size,
            }
        )
        if index >= 6:
            size -= 9_216
            steps.append(
                {
                    "rewrite": "gate into the previous convolution",
                    "block": b["output"],
                    "kernels": kernels,
                    "activation_bytes": size,
                }
            )
    steps.append(
        {
            "rewrite": "input as NHWC",
            "block": None,
            "kernels": kernels,
            "activation_bytes": size + 2_048,
        }
    )
    return steps


def engine(precision, plan_, *, waterfall_=None):
    made = head("build-engine") | {
        "engine": f"model.{precision}.engine",
        "manifest": f"model.{precision}.engine.json",
        "plan": plan_,
        "requested_precision": precision,
        "found_precision": precision,
        "seconds": 3.4,
    }
    if waterfall_:
        made["waterfall"] = waterfall_
    return made


def quantize():
    names = [f"layer{i // 3 + 1}.{i % 3}.conv{1 + i % 2}.input" for i in range(19)]
    return head("quantize") | {
        "onnx": "model.int8.onnx",
        "policy": "gate in FP16, residual shared",
        "method": "mse",
        "samples": 128,
        "quantized": names,
        "kept": [
            {"node": b["scale_node"], "reason": "SE gate: 0 to 2 dB for nothing measurable"} for b in blocks()
        ],
        "sqnr_db": {"output": 33.7},
        "macs_int8_fraction": 0.9981,
        "curve": [
            {"macs_fp16_fraction": f, "sqnr_db": d}
            for f, d in ((0.0, 33.7), (0.021, 36.2), (0.064, 39.8), (0.1, 42.9), (0.25, 47.3))
        ],
        "ranges": [
            {
                "tensor": name,
                "low": -(i % 4) * 0.9,
                "high": 3.1 + (i * 37 % 11) * 0.6,
                "threshold": 2.7 + (i * 37 % 11) * 0.5,
            }
            for i, name in enumerate(names)
        ],
        "worth": {
            "fp16_bytes": 1_433_600,
            "int8_bytes": 1_921_024,
            "fp16_kernels": 59,
            "int8_kernels": 78,
            "recommended": "fp16",
            "reason": "the INT8 plan moves 34 % more bytes in 19 more kernels than the FP16 plan",
        },
    }


def report():
    """The whole of it: every optional key is there."""
    fp16 = plan("tensorrt-rtx", "sm86", "fp16", kernels=59, megabytes=1.4336)
    int8 = plan("tensorrt-rtx", "sm86", "int8", kernels=78, megabytes=1.921, split=(0, 1))
    ort = plan("onnxruntime", "cpu", "fp32", kernels=61, megabytes=3.91)
    stand_in = "no GPU on this machine: the engine's numerics were checked through its ONNX file {}"
    seeded = "power was not measured: this machine has no sensor that the tool knows"
    return copy.deepcopy(
        head("demo")
        | {
            "warnings": [seeded],
            "command": "se-deploy demo -o out/",
            "date": "2026-11-22T02:14:07+00:00",
            "network": {
                "spec": "se_deploy:se_resnet20",
                "weights": "calibration/se_resnet20_digits.safetensors",
                "params": 277_130,
                "macs": 41_030_000,
                "input": {
                    "name": "input",
                    "channels": 1,
                    "height": 32,
                    "width": 32,
                    "mean": [0.1307],
                    "std": [0.3081],
                },
            },
            "machine": {
                "platform": "Linux-6.8.0-x86_64-with-glibc2.36",
                "cpu": "AMD EPYC 9R14",
                "cores": 2,
                "python": "3.11.9",
                "packages": {
                    "torch": "2.14.1",
                    "onnx": "1.23.0",
                    "onnxruntime-gpu": "1.31.1",
                    "tensorrt-rtx": "1.7.1.116",
                },
            },
            "report": "report.html",
            "artifacts": {
                "onnx": "model.onnx",
                "fp16": "model.fp16.onnx",
                "int8": "model.int8.onnx",
                "fp16_engine": "model.fp16.engine",
                "fp16_manifest": "model.fp16.engine.json",
                "int8_engine": "model.int8.engine",
                "int8_manifest": "model.int8.engine.json",
            },
            "sizes": {
                "model.onnx": 1_121_330,
                "model.fp16.onnx": 566_120,
                "model.int8.onnx": 318_511,
                "model.fp16.engine": 1_904_412,
                "model.int8.engine": 1_513_908,
            },
            "export": head("export")
            | {
                "onnx": "model.onnx",
                "nodes_before": 214,
                "nodes_after": 103,
                "rewrites": [["fold_batch_norm", 19], ["mean_to_pool", 9], ["linear_to_conv", 18]],
                "refused": [
                    [
                        "gate-behind-pool",
                        block(i, 16)["output"],
                        "what reads its output is Add 'a', no pooling",
                    ]
                    for i in (0, 1)
                ],
                "max_abs_error": 4.8e-06,
                "opset": 20,
                "blocks": blocks(),
                "rejected": [],
                "plans": [],
                "warnings": ["the dynamo exporter wrote opset 18 when asked for 17; converted to 20"],
            },
            "inspect": head("inspect")
            | {
                "blocks": blocks(),
                "rejected": [{"output": "classifier.mul", "reason": "its gate has another source"}],
                "plans": [ort],
                "totals": {
                    "se_kernels": 36,
                    "se_bytes": 412_000,
                    "kernels": 59,
                    "activation_bytes": 1_433_600,
                    "without_se": {"kernels": 23, "activation_bytes": 1_187_000},
                },
            },
            "quantize": quantize(),
            "build-engines": {
                "fp16": engine("fp16", fp16, waterfall_=waterfall()),
                "int8": engine("int8", int8),
            },
            "build-engine": engine("fp16", fp16, waterfall_=waterfall()),
            "parity": head("parity")
            | {
                "preset": "int8",
                "passed": True,
                "reference_accuracy": 0.992,
                "candidates": [
                    candidate(
                        "model.onnx",
                        "fp32",
                        max_abs=5.7e-06,
                        sqnr_db=127.9,
                        cosine=1.0,
                        top1=1.0,
                        accuracy=0.992,
                    ),
                    candidate(
                        "model.fp16.onnx",
                        "fp16",
                        max_abs=0.011,
                        sqnr_db=68.2,
                        cosine=0.9999999,
                        top1=1.0,
                        accuracy=0.992,
                    ),
                    candidate(
                        "model.int8.onnx",
                        "int8",
                        max_abs=0.81,
                        sqnr_db=33.7,
                        cosine=0.99979,
                        top1=0.998,
                        accuracy=0.991,
                    ),
                    candidate(
                        "model.fp16.engine",
                        "fp16",
                        max_abs=0.011,
                        sqnr_db=68.2,
                        cosine=0.9999999,
                        top1=1.0,
                        accuracy=0.992,
                        checked_as=stand_in.format("model.fp16.onnx"),
                    ),
                    candidate(
                        "model.int8.engine",
                        "int8",
                        max_abs=0.81,
                        sqnr_db=33.7,
                        cosine=0.99979,
                        top1=0.998,
                        accuracy=0.991,
                        checked_as=stand_in.format("model.int8.onnx"),
                    ),
                ],
            },
            "profile": head("profile")
            | {
                "warnings": [seeded, "no GPU on this machine: the engines were not timed"],
                "artifacts": [
                    timing("se_deploy:se_resnet20", "torch", 1, 6.83, speedup=1.0),
                    timing("model.onnx", "onnxruntime", 1, 1.02, speedup=6.7),
                    timing("model.fp16.onnx", "onnxruntime", 1, 1.81, speedup=3.77),
                    timing("model.int8.onnx", "onnxruntime", 1, 1.37, speedup=4.98),
                ],
            },
            "verdicts": {"parity": True, "fusion": False, "precision": True, "latency": None},
            "recommendation": "Deploy model.fp16.engine: the INT8 plan moves 34 % more bytes on sm86.",
        }
    )
