"""What any machine can do of a run, as it goes to the process that does the rest, maybe on a device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.commands.export import ExportResult
    from se_deploy.commands.quantize import QuantizeResult


@dataclass(frozen=True, slots=True)
class Prepared:
    """The graphs of a run in every precision, written and verified."""

    exported: ExportResult
    quantized: QuantizeResult | None  # None where INT8 was not asked for
    written: tuple[str, ...]  # names of the ONNX files in the folder
    warnings: tuple[str, ...]

    def portable(self) -> Prepared:
        """Return it without what stays in a process: the network itself, samples and sessions."""
        was = self.exported.source
        taken = dataclasses.replace(was, given=was.model, network=None, check=None, samples=None)
        made = self.quantized
        if made is not None:
            made = dataclasses.replace(made, lowered=dataclasses.replace(made.lowered, samples=None))
        exported = dataclasses.replace(self.exported, source=taken)
        return dataclasses.replace(self, exported=exported, quantized=made)

    def moved(self, folder: Path) -> Prepared:
        """Return it for a folder that its files were copied to."""
        exported = dataclasses.replace(self.exported, onnx=folder / self.exported.onnx.name)
        made = self.quantized
        if made is not None:
            made = dataclasses.replace(made, onnx=folder / made.onnx.name)
        return dataclasses.replace(self, exported=exported, quantized=made)
