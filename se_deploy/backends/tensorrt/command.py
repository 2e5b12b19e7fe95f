"""The command line of NVIDIA's own tool that builds the engine that was built here."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from se_deploy.backends.tensorrt.flavours import FLAVOURS, TENSORRT_RTX

if TYPE_CHECKING:
    from se_deploy.backends.engine import Engine


def build_command(engine: str, onnx: str, built: Engine) -> str:
    """Return the command of NVIDIA's own tool that builds the same: precision is in the graph."""
    free = {name: p for name, p in built.shapes.items() if name in built.free}
    words = [FLAVOURS[built.runtime].tool, f"--onnx={onnx}", f"--saveEngine={engine}"]
    for option, pick in (("minShapes", "min"), ("optShapes", "opt"), ("maxShapes", "max")):
        if free:
            shapes = (f"{name}:{'x'.join(map(str, getattr(p, pick)))}" for name, p in free.items())
            words.append(f"--{option}={','.join(shapes)}")
    if built.runtime == TENSORRT_RTX.name:
        capabilities = ",".join(t.removeprefix("sm") for t in built.plan.target.split("+"))
        words.append(f"--computeCapabilities={capabilities}")
    elif built.plan.version.startswith("10."):  # from 11 on, networks are always strongly typed
        words.append("--stronglyTyped")
    if built.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{built.workspace_bytes / 2**20:g}")  # MiB
    return shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])
