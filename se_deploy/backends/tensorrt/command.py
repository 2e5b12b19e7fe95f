"""The command line of NVIDIA's own tool that builds the engine that was built here."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from se_deploy.backends.tensorrt.flavours import FLAVOURS, TENSORRT_RTX

if TYPE_CHECKING:
    from se_deploy.backends.engine import Engine
    from se_deploy.options import EngineFeatures


def build_command(engine: str, onnx: str, built: Engine) -> str:
    """Return the command of NVIDIA's own tool that builds the same: precision is in the graph."""
    words = [FLAVOURS[built.runtime].tool, f"--onnx={onnx}", f"--saveEngine={engine}"]
    ranges = (built.shapes, *built.more_shapes)
    for k, shapes in enumerate(ranges if built.free else ()):
        words += [f"--profile={k}"] if len(ranges) > 1 else []
        for option, pick in (("minShapes", "min"), ("optShapes", "opt"), ("maxShapes", "max")):
            named = (
                f"{name}:{'x'.join(map(str, getattr(p, pick)))}"
                for name, p in shapes.items()
                if name in built.free
            )
            words.append(f"--{option}={','.join(named)}")
    if built.runtime == TENSORRT_RTX.name:
        capabilities = ",".join(t.removeprefix("sm") for t in built.plan.target.split("+"))
        words.append(f"--computeCapabilities={capabilities}")
    elif built.plan.version.startswith("10."):  # from 11 on, networks are always strongly typed
        words.append("--stronglyTyped")
    if built.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{built.workspace_bytes / 2**20:g}")  # MiB
    words += _features(built.features, tf32_flag=built.runtime != TENSORRT_RTX.name)
    return shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])


_LEVELS = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}


def _features(asked: EngineFeatures, *, tf32_flag: bool) -> list[str]:
    """Return the flags of trtexec for what was asked; formats are not in it, for it wants all of them."""
    words = {
        "--noTF32": tf32_flag and not asked.tf32,
        f"--builderOptimizationLevel={asked.optimization_level}": asked.optimization_level is not None,
        "--versionCompatible": asked.version_compatible,
        f"--hardwareCompatibilityLevel={_LEVELS.get(asked.hardware_compatibility or '')}": (
            asked.hardware_compatibility is not None
        ),
        "--sparsity=enable": asked.sparsity,
        "--refit": asked.refit,
        "--stripWeights": asked.strip_weights,
        "--allowWeightStreaming": asked.weight_streaming,
        f"--useDLACore={asked.dla_core}": asked.dla_core is not None,
        "--allowGPUFallback": asked.dla_core is not None,
    }
    libraries = [f"--dynamicPlugins={library.name}" for library in asked.plugins]
    return [word for word, said in words.items() if said] + libraries
