"""`report`: runs side by side, from what they left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.commands.results import Json


def read_report(folder: Path) -> Json:
    """Read the report.json that a run left. Raises: BadInput."""
    path = folder / "report.json"
    try:
        payload: Json = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise BadInput(
            f"'{path}' cannot be read: {e}", hint="name folders that `se-deploy run` filled"
        ) from e
    if not str(payload.get("schema", "")).startswith(("se-deploy/run/", "se-deploy/demo/")):
        raise BadInput(f"'{path}' is no report of a run", hint="name folders that `se-deploy run` filled")
    return payload
