"""`networks`: the SE networks that ship."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import extras
from se_deploy.protocols import silent
from se_deploy.schema import tool_version
from se_deploy.schema.results import Networks, ShippedNetwork

if TYPE_CHECKING:
    from se_deploy.protocols import Progress


def networks(*, progress: Progress = silent) -> Networks:
    """Return every network that ships, counted at its own input size. Raises: MissingRuntime."""
    with extras.needed_for("the list of networks that ship"):
        from se_deploy import networks as shipped  # noqa: PLC0415 - nothing else of the tool needs torch

    rows = []
    for done, name in enumerate(shipped.NETWORKS):
        progress("count", done, len(shipped.NETWORKS))
        d = shipped.describe(name)
        rows.append(
            ShippedNetwork(
                name=name,
                params=d.params,
                macs=d.macs,
                blocks=d.blocks,
                input_size=d.input_size,
                reference=d.reference,
            )
        )
    progress("count", len(rows), len(rows))
    return Networks(tool_version=tool_version(), warnings=(), networks=tuple(rows))
