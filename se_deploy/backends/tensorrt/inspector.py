r"""Reads the JSON of full TensorRT's EngineInspector, in every form from 8.6 to 11.

8.6 and 10: {"Layers": [{"Name", "LayerType", "Inputs": [{"Name", "Dimensions", "Format/Datatype"}],
"Outputs", "Weights": {"Type", "Count"}, "Bias", "Metadata"}], "Bindings": [name]}, the datatype inside a
sentence such as "Channel major FP16 format where channel % 8 == 0", or alone ("Half") in the kernels of its
newer compiler.
11: "I/O Tensors" instead of "Bindings", "Format" and "Datatype" apart. With less than detailed verbosity the
layers are bare names, which say nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

from se_deploy import files
from se_deploy.backends.tensorrt.layer_log import DTYPES, dtype_of, first_profile, onnx_nodes
from se_deploy.errors import BadArtifact
from se_deploy.plan import SIZE_BYTES, Kernel, Plan, PlanTensor

_NO_LAUNCH = frozenset({"shape_call", "noop", "constant", "signal", "wait", "assertion"})
_OPAQUE = frozenset({"myelin", "myelin_v2"})
"""Layers that are whole subgraphs, named {ForeignNode[first...last]}: only their edges are shown."""
_LANES = {"two": 2, "four": 4, "sixteen": 16, "thirty-two": 32}
_WRAPPERS = re.compile(r"\b(?:PWN|ForeignNode)\(|[()]")  # PWN(PWN(Sigmoid_1), Mul_2): fused pointwise nodes


def plan_from_inspector(text: str, *, version: str, target: str) -> Plan:
    """Read an EngineInspector's JSON, as `trtexec --exportLayerInfo` writes it too.

    Raises: BadArtifact where it is no such JSON, or was built without detailed verbosity.
    """
    try:
        layers = list(json.loads(text)["Layers"])
    except files.DAMAGED as e:
        raise BadArtifact(
            "the engine inspector's JSON has no list of layers", hint="export it again with trtexec"
        ) from e
    if any(not isinstance(layer, dict) for layer in layers):
        raise BadArtifact(
            "the engine was built without detailed layer information",
            hint="build it with --profilingVerbosity=detailed, as `se-deploy build-engine` does",
        )
    kernels = []
    for number, layer in enumerate(layers):
        try:
            kernels.append(_kernel(layer))
        except files.DAMAGED as e:
            raise BadArtifact(
                f"layer {number} of the engine inspector's JSON cannot be read: {files.reason_of(e)}",
                hint="export it again with trtexec, or report it with the version of the compiler",
            ) from e
    return Plan("tensorrt", version, target, first_profile(kernels))


def _kernel(layer: dict[str, Any]) -> Kernel:
    kind = str(layer.get("LayerType", ""))
    return Kernel(
        name=str(layer["Name"]),
        kind=kind,
        inputs=tuple(_tensor(tensor) for tensor in layer.get("Inputs", ())),
        outputs=tuple(_tensor(tensor) for tensor in layer.get("Outputs", ())),
        onnx_nodes=_nodes(layer),
        constants=_constants(layer),
        host_only=kind.lower() in _NO_LAUNCH,
        opaque=kind.lower() in _OPAQUE or "ForeignNode[" in str(layer["Name"]),
    )


def _nodes(layer: dict[str, Any]) -> tuple[str, ...]:
    """Take the ONNX nodes from the metadata; from the name where there is none, as in old engines."""
    metadata = str(layer.get("Metadata", ""))
    if metadata or layer.get("LayerType") == "Reformat":
        return onnx_nodes(metadata)
    if "Metadata" in layer:  # it says itself that no ONNX node is in it
        return ()
    names = re.split(r" \+ |, ", _WRAPPERS.sub("", str(layer["Name"])))
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _tensor(tensor: dict[str, Any]) -> PlanTensor:
    sentence = str(tensor.get("Format/Datatype", ""))
    layout = str(tensor.get("Format", sentence))
    return PlanTensor(
        str(tensor.get("Name", "")),
        dtype_of(str(tensor["Datatype"]) if "Datatype" in tensor else _dtype_in(sentence)),
        tuple(int(d) for d in tensor.get("Dimensions", ())),
        _layout(layout),
    )


def _dtype_in(sentence: str) -> str:
    """Find the element type in "Channel major FP16 format where channel % 8 == 0"."""
    words = [word.lower() for word in re.findall(r"\w+", sentence)]
    return next((w for w in words if DTYPES.get(w, w) in SIZE_BYTES), sentence)


def _layout(sentence: str) -> str:
    words = sentence.lower()
    lanes = re.search(r"(\S+) wide channel vectorized", words)
    if lanes is not None:
        return f"nchw{_LANES.get(lanes[1], '')}"
    if "channel major" in words or "nhwc" in words:
        return "nhwc"
    return "nchw" if "row major" in words else ""


def _constants(layer: dict[str, Any]) -> tuple[PlanTensor, ...]:
    """Weights and bias: counted in the older form, listed in the newer compiler's."""
    counted = tuple(
        PlanTensor(f"{layer['Name']}.{key.lower()}", dtype_of(str(weights["Type"])), (int(weights["Count"]),))
        for key in ("Weights", "Bias")
        if isinstance(weights := layer.get(key), dict) and int(weights.get("Count", 0)) > 0
    )
    listed = layer.get("Constants", ())
    return counted + tuple(_tensor(tensor) for tensor in listed if isinstance(tensor, dict))
