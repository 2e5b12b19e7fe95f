"""Finds the checkpoint, the calibration digits and the held-out digits that ship with the package."""

from __future__ import annotations

from pathlib import Path

from se_deploy.errors import BadInput

_PACKAGE = Path(__file__).resolve().parent
FOLDERS = (_PACKAGE / "_shipped", _PACKAGE.parent / "calibration")  # in a wheel; in a checkout


def shipped(name: str) -> Path:
    """Return the path of the shipped file `name`, in a wheel and in an editable checkout alike.

    Raises: BadInput where no such file ships.
    """
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(
        f"'{name}' is none of the files that ship with se-deploy",
        hint="reinstall the package: its wheel carries them in se_deploy/_shipped",
    )
