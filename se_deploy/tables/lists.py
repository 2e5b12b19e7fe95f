"""Tables of what there is: networks, this machine, classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from se_deploy.tables.base import add, percent, titled

if TYPE_CHECKING:
    from se_deploy.schema.results import Doctor, Networks, Predict
    from se_deploy.tables.base import Grid


def networks(result: Networks) -> Grid:
    """Return the networks that ship."""
    table = titled(
        "SE networks that ship: se_deploy:NAME",
        ["name", "input", "params", "MACs", "SE blocks", "reference"],
        right=(2, 3, 4),
        spare=(5, 1),
    )
    for row in result.networks:
        add(table,
            row.name, "x".join(map(str, row.input_size)), f"{row.params / 1e6:.2f} M",
            f"{row.macs / 1e6:,.0f} M", str(row.blocks), row.reference,
        )  # fmt: skip
    return table


def doctor(result: Doctor) -> list[Grid]:
    """Return every check, and what follows from them."""
    table = titled("This machine", ["what", "state", "detail", "hint"])
    style = {"ok": "green", "missing": "yellow", "broken": "red"}
    for check in result.checks:
        state = Text(check.state, style=style[check.state])
        add(table, check.name, state, check.detail, check.fix or "")
    follows = titled("What follows", ["", ""])
    add(follows, "builds", "\n".join(result.can_build) or "nothing")
    add(follows, "runs", "\n".join(result.can_run) or "nothing")
    return [table, follows]


def predicted(result: Predict) -> Grid:
    """Return a row per image and class, the image named once."""
    table = titled(
        f"{result.artifact} in {result.runtime}", ["image", "class", "label", "probability"], right=(3,)
    )
    for prediction in result.predictions:
        for rank, guess in enumerate(prediction.top):
            add(table,
                prediction.image if rank == 0 else "", str(guess.index),
                guess.label or "-", percent(guess.probability),
            )  # fmt: skip
        if len(prediction.top) > 1:
            table.add_section()
    return table
