"""The two TensorRTs: one class each way, given what differs between them."""

from __future__ import annotations

from dataclasses import dataclass

from se_deploy import extras


@dataclass(frozen=True, slots=True)
class Flavour:
    """What tells TensorRT and TensorRT-RTX apart before the module is imported."""

    name: str  # as --runtime takes it
    title: str
    module: str  # as Python imports it
    install: str
    install_on_jetson: str | None
    tool: str  # NVIDIA's own command-line tool
    magic: bytes  # what its engines begin with; b"" where that says nothing

    def absent(self, reason: str) -> str:
        """Return what to say where the module cannot be imported for `reason`, Python's own words."""
        if reason == f"No module named '{self.module}'":
            return f"{self.title} is not installed here"
        return f"{self.title} cannot be used: {reason}"

    @property
    def hint(self) -> str:
        """The command that installs it, on Jetson too where that differs."""
        jetson = f"; on a Jetson: {self.install_on_jetson}" if self.install_on_jetson else ""
        return f"{self.install}{jetson}"


TENSORRT = Flavour(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    install=extras.install("tensorrt"),
    install_on_jetson="sudo apt-get install python3-libnvinfer, then a virtual environment that sees it: "
    "python3 -m venv --system-site-packages .venv, with the system's own python3",
    tool="trtexec",
    magic=b"",
)
TENSORRT_RTX = Flavour(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    install=extras.install("rtx"),
    install_on_jetson=None,
    tool="tensorrt_rtx",
    magic=b"vtrt",
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
