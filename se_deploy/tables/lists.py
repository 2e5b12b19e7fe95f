"""Tables of what there is: networks, this machine, classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from se_deploy.tables.base import add, percent, titled

if TYPE_CHECKING:
    from se_deploy.schema.results import Doctor, Networks, Predict, Prediction
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
    """Return a row per image and class or box, the image named once."""
    boxed = any(prediction.boxes for prediction in result.predictions)
    masked = any(prediction.mask for prediction in result.predictions)
    value = "share of pixels" if masked else "score" if boxed else "probability"
    heads = ["image", "class", "label", value, *(["x1, y1, x2, y2"] if boxed else [])]
    table = titled(
        f"{result.artifact} in {result.runtime}", [*heads, *(["mask"] if masked else [])], right=(3,)
    )
    for prediction in result.predictions:
        rows = _rows(prediction)
        for rank, row in enumerate(rows):
            more = [prediction.mask if rank == 0 else ""] if masked else []
            add(table, prediction.image if rank == 0 else "", *row, *more)
        if not rows:
            add(table, prediction.image, "nothing found", *[""] * (len(heads) - 2))
        if len(rows) > 1:
            table.add_section()
    return table


def _rows(prediction: Prediction) -> list[list[str]]:
    if prediction.top:
        return [[str(one.index), one.label or "-", percent(one.probability)] for one in prediction.top]
    if prediction.mask:
        return [[str(one.index), one.label or "-", percent(one.share)] for one in prediction.classes]
    return [
        [
            "-" if one.index is None else str(one.index),
            one.label or "-",
            "-" if one.score is None else f"{one.score:.4f}",
            ", ".join(f"{value:.4g}" for value in one.corners),
        ]
        for one in prediction.boxes
    ]
