"""The packages whose versions decide on results."""

from __future__ import annotations

import re
from importlib import metadata

from se_deploy.backends import registry

PACKAGES = (
    "timm", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy", "pillow",
)  # fmt: skip


_SEPARATORS = re.compile(r"[-_.]+")
"""Which of them a distribution's name has makes no difference (PEP 503); its metadata has any."""


def versions() -> dict[str, str]:
    """Return the version of each that is installed, by name; those of every backend come first."""
    installed: dict[str, str] = {}
    for dist in metadata.distributions():  # in the order of sys.path: what comes first is imported
        told = dist.metadata
        if "Name" in told:  # half an installation has none
            installed.setdefault(_SEPARATORS.sub("-", told["Name"].lower()), dist.version)
    brought = (name for backend in registry.every() for name in backend.packages)
    return {name: installed[name] for name in (*brought, *PACKAGES) if name in installed}
