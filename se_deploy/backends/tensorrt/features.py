"""What a build may be asked for besides precision: how each TensorRT is told, and which cannot do it.

`FEATURES` is the one table of it: the compiler takes flags and refusals from it, and docs/engine_options.md
shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.backends.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from se_deploy.backends.tensorrt.flavours import Flavour
    from se_deploy.options import EngineFeatures


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a runtime does not do something, and what to do instead."""

    reason: str
    instead: str
    with_device: bool = False  # whether it does it where a GPU is


@dataclass(frozen=True, slots=True)
class Feature:
    """One option of a build."""

    option: str  # as the command line takes it
    asked: Callable[[EngineFeatures], bool]
    does: str
    flag: str | None = None  # of BuilderFlag; None where it is told in another way
    refused: Refusal | None = None  # by TensorRT-RTX
    note: str = ""  # what TensorRT-RTX makes of it


_GPU_ONLY = Refusal(
    "fails inside without a GPU (tried with 1.7.1)", "build on a machine with one", with_device=True
)

FEATURES = (
    Feature("--tf32", lambda f: f.tf32, "FP32 layers may round their inputs to TF32's 10 bits", "TF32"),
    Feature(
        "--optimization-level",
        lambda f: f.optimization_level is not None,
        "0 to 5: how long to look for faster kernels",
        note="taken; the plan is the same at every level",
    ),
    Feature(
        "--version-compatible",
        lambda f: f.version_compatible,
        "newer TensorRT of the same major version loads the engine, which carries a runtime of its own",
        "VERSION_COMPATIBLE",
        Refusal("has no lean runtime to put into an engine", "build again for each version"),
    ),
    Feature(
        "--hardware-compatibility",
        lambda f: f.hardware_compatibility is not None,
        "other GPUs load the engine: `ampere-plus`, or `same-compute-capability` (since 10.13)",
        refused=Refusal("ignores it", "name each GPU with --target: one engine serves several"),
    ),
    Feature("--sparsity", lambda f: f.sparsity, "kernels for weights that are 2:4 sparse", "SPARSE_WEIGHTS"),
    Feature("--refit", lambda f: f.refit, "the engine takes other weights later", "REFIT", _GPU_ONLY),
    Feature(
        "--strip-weights",
        lambda f: f.strip_weights,
        "the engine holds no weights; they come from the ONNX file beside it when it is loaded",
        "STRIP_PLAN",
        _GPU_ONLY,
    ),
    Feature(
        "--weight-streaming",
        lambda f: f.weight_streaming,
        "weights may stay in host memory and are copied when they are needed",
        "WEIGHT_STREAMING",
    ),
    Feature(
        "--dla-core",
        lambda f: f.dla_core is not None,
        "layers that the DLA takes run there, the rest on the GPU",
        refused=Refusal("builds for the GPU alone", "use --runtime tensorrt on the Jetson itself"),
    ),
    Feature("--io-format", lambda f: bool(f.io_formats), "how an input or output lies in memory: `HWC8`"),
    Feature(
        "--plugin",
        lambda f: bool(f.plugins),
        "shared libraries with operators of your own",
        refused=Refusal("takes no plug-ins", "use --runtime tensorrt"),
    ),
    Feature(
        "--best-of",
        lambda f: f.best_of > 1,
        "builds N times and keeps the engine that is fastest on the device",
        refused=Refusal("times no kernels: its builds are alike", "build once"),
    ),
    Feature(
        "--timing-cache",
        lambda _: False,  # a warning and no refusal: the engine is the same without
        "kernel timings, read and written",
        note="not used, with a warning: it times nothing",
    ),
)
"""Every option, in the order of the documentation."""


def flags(features: EngineFeatures) -> list[str]:
    """Return the names of BuilderFlag that `features` sets."""
    return [feature.flag for feature in FEATURES if feature.flag and feature.asked(features)]


def check(
    features: EngineFeatures, flavour: Flavour, version: str, *, device: bool, levels: Collection[str]
) -> None:
    """Raise BadInput, before anything is built, for what this runtime cannot do.

    `device`: whether there is a GPU; `levels`: the module's hardware compatibility levels.
    """
    for feature in FEATURES:
        refusal = feature.refused
        if refusal is None or not feature.asked(features) or flavour is not TENSORRT_RTX:
            continue
        if not (refusal.with_device and device):
            raise BadInput(
                f"{feature.option}: {flavour.title} {version} {refusal.reason}", hint=refusal.instead
            )
    wanted = features.hardware_compatibility
    if wanted is not None and level_name(wanted) not in levels:
        raise BadInput(
            f"--hardware-compatibility {wanted}: {flavour.title} {version} does not know it",
            hint=f"use {TENSORRT.title} 10.13 or newer, or ampere-plus",
        )
    if features.best_of > 1 and not device:
        raise BadInput(
            "--best-of: engines are timed on the device that they are built for, and there is none here",
            hint="build on the device",
        )


def level_name(choice: str) -> str:
    """Return the bindings' name of a hardware compatibility level: "ampere-plus" is AMPERE_PLUS."""
    return choice.replace("-", "_").upper()
