"""Results as people and CI systems read them: HTML pages, a Markdown summary, JUnit XML.

Everything works from the plain JSON objects of the contract, so that a report can be made from the files of
a run that happened on another machine. matplotlib is imported when a plot is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.report.pages import compare_html, html, inspect_html
from se_deploy.report.summary import markdown
from se_deploy.report.sweep_page import sweep_html
from se_deploy.report.xunit import junit, junit_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks import SEBlock

__all__ = [
    "block_svg",
    "compare_html",
    "html",
    "inspect_html",
    "junit",
    "junit_error",
    "markdown",
    "network_svg",
    "sweep_html",
]


def block_svg(model: ir.Model, block: SEBlock) -> str:
    """Draw `block` with what feeds it and what reads it, as inline SVG for `inspect_html`.

    Raises: ValueError where no node of the block is in `model`.
    """
    from se_deploy.report import drawing  # noqa: PLC0415 - onnx: a page from JSON needs none

    return drawing.block_svg(model, block)


def network_svg(model: ir.Model, blocks: Sequence[SEBlock], kernels: Sequence[Sequence[str]]) -> str | None:
    """Draw a whole graph with its SE blocks and kernels, as inline SVG for `html`.

    `kernels`: the node names of each kernel of a plan. None where the graph is too large to be read.
    """
    from se_deploy.report import drawing  # noqa: PLC0415 - onnx: a page from JSON needs none

    return drawing.network_svg(model, blocks, kernels)
