"""What the outputs of an ONNX file are, where somebody said it; it travels in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.errors import BadModel
from se_deploy.schema import codec
from se_deploy.schema.common import OutputKind

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

METADATA_KEY = "se_deploy.outputs"


def write(metadata: MutableMapping[str, str], kinds: Mapping[str, OutputKind]) -> None:
    """Put the kinds of outputs, by name, into an ONNX model's metadata."""
    metadata[METADATA_KEY] = codec.encode(dict(kinds), indent=None)


def read(metadata: Mapping[str, str]) -> dict[str, OutputKind]:
    """Return the kinds of outputs that an ONNX model's metadata name; empty where it names none.

    Raises: BadModel where the entry is there but is none of ours.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    return codec.decode(
        text,
        dict[str, OutputKind],
        what=f"the metadata entry '{METADATA_KEY}', the kinds of outputs",
        error=BadModel,
        hint='write it as JSON, as in {"boxes": "boxes"}, or remove it',
    )
