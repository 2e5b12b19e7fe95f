"""The plots of a report as inline SVG: text stays text, colours follow the page's light or dark scheme.

matplotlib is imported when a plot is drawn; where it is not installed there is none, and the page says so. No
pyplot, no global state: every figure is drawn under its own style, and the same numbers give the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from se_deploy.backends import registry
from se_deploy.report import units
from se_deploy.report.facts import timing_label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from se_deploy.report.facts import ErrorRow, Waterfall
    from se_deploy.schema.results import CurvePoint, Range, Timing

# Stand-ins that become the page's CSS variables: matplotlib takes no variable for a colour.
_INK, _FAINT = "#010101", "#020202"
_SERIES = ("#030303", "#040404", "#050505", "#060606")
_CSS = {
    _INK: "var(--ink)",
    _FAINT: "var(--line)",
    **{colour: f"var(--series-{i + 1})" for i, colour in enumerate(_SERIES)},
}

_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "se-deploy",
    "text.parse_math": False,  # a tensor may be called $x$
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))

_WIDTH_IN = 7.6
_ROW_IN = 0.3
_PX_PER_PT = 1.35
_NAME_LENGTH = 44
_NAMED_RANGES = 24
_OUTLIER = 20.0  # ranges this far above the median would squash all others on a linear axis
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Plot:
    """An inline SVG with its heading and a sentence that says how to read it."""

    name: str
    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Point:
    """One artifact of a sweep: its time per image, and its accuracy as a share."""

    name: str
    ms: float
    share: float
    planned: bool
    passed: bool
    front: bool  # no other one is both faster and as accurate


def available() -> bool:
    """Whether plots can be drawn here; where not, every function below returns None."""
    return importlib.util.find_spec("matplotlib") is not None


def latency(timings: Sequence[Timing]) -> Plot | None:
    """Draw p50 as bars with whiskers to p90 and p99; None where nothing was timed."""
    timed = timings
    if not timed:
        return None

    def draw(axes: Axes) -> None:
        reference = registry.reference().name
        reach = max(max(t.p50_ms, t.p90_ms, t.p99_ms) for t in timed)
        for row, t in enumerate(timed):
            p50 = t.p50_ms
            axes.barh(row, p50, height=0.56, color=_SERIES[3 if t.runtime == reference else 0])
            for value, width, size in ((t.p99_ms, 0.9, 0.16), (t.p90_ms, 2.4, 0.0)):
                axes.plot([p50, value], [row, row], color=_INK, linewidth=width, solid_capstyle="butt")
                axes.plot([value, value], [row - size, row + size], color=_INK, linewidth=width)
            end = max(p50, t.p90_ms, t.p99_ms)
            axes.text(end + 0.012 * reach, row, _p50(t), va="center")
        _rows(axes, [timing_label(t) for t in timed])
        axes.set_xlim(0, reach * 1.14)
        axes.set_xlabel("ms per batch")

    return _plot(
        "latency",
        "Time per batch",
        "Bars: p50, grey for PyTorch. Thick whisker: to p90. Thin whisker: to p99.",
        draw,
        rows=len(timed),
    )


def errors(rows: Sequence[ErrorRow]) -> Plot | None:
    """Draw the signal-to-noise ratio of every output of every artifact; None where nothing was compared."""
    measured = [row for row in rows if row.measured.sqnr_db is not None]
    if not measured:
        return None
    several = len({row.measured.name for row in measured}) > 1

    def draw(axes: Axes) -> None:
        for position, row in enumerate(measured):
            output = row.measured
            db = output.sqnr_db or 0.0
            colour = _SERIES[0 if output.passed else 1]
            shown = min(db, 140.0) if db >= units.IDENTICAL_DB else db
            axes.barh(position, shown, height=0.56, color=colour)
            label = "identical" if db >= units.IDENTICAL_DB else f"{db:.1f} dB"
            if output.max_abs is not None:
                label += f", largest error {output.max_abs:.2g}"
            axes.annotate(
                label,
                (max(shown, 0.0), position),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        _rows(
            axes, [f"{row.artifact} · {row.measured.name}" if several else row.artifact for row in measured]
        )
        axes.set_xlabel("SQNR in dB")

    return _plot(
        "errors",
        "Error of each output against PyTorch",
        "Signal-to-quantization-noise ratio: more is better, 20 dB is an error of 10 % of the signal's RMS, "
        "40 dB of 1 %. Orange: outside its tolerance.",
        draw,
        rows=len(measured),
    )


def ranges(found: Sequence[Range]) -> Plot | None:
    """Draw what calibration saw of each quantized tensor and where it is clipped; None without ranges."""
    if not found:
        return None
    named = len(found) <= _NAMED_RANGES
    clipped = [(place, r.threshold) for place, r in enumerate(found) if r.threshold is not None]

    def draw(axes: Axes) -> None:
        places, low, high = list(range(len(found))), [r.low for r in found], [r.high for r in found]
        reach = sorted(max(abs(r.low), abs(r.high), r.threshold or 0) for r in found)
        middle = reach[len(reach) // 2]
        bars = axes.hlines if named else axes.vlines
        bars(places, low, high, color=_SERIES[0], linewidth=5 if named else max(1, 300 / len(found)))
        for sign in (-1, 1):
            where, ends = [place for place, _ in clipped], [sign * clip for _, clip in clipped]
            axes.scatter(
                ends if named else where,
                where if named else ends,
                s=80 if named else 16,
                linewidths=1.6,
                marker="|" if named else "_",
                color=_SERIES[1],
            )
        (axes.axvline if named else axes.axhline)(0, color=_INK, linewidth=0.8)
        if named:
            _rows(axes, [r.tensor for r in found])
            axes.set_xlabel("value")
        else:
            axes.grid(axis="y")
            axes.set_xlabel("quantized tensors in graph order (names in the table)")
            axes.set_ylabel("value")
        if 0 < _OUTLIER * middle < reach[-1]:
            (axes.set_xscale if named else axes.set_yscale)("symlog", linthresh=middle)
            tens = [
                10.0**k for k in range(math.ceil(math.log10(middle)), math.ceil(math.log10(reach[-1])) + 1)
            ]
            ticks = [*(-ten for ten in reversed(tens)), 0.0, *tens]
            (axes.set_xticks if named else axes.set_yticks)(ticks, labels=[f"{tick:g}" for tick in ticks])

    return _plot(
        "ranges",
        "Ranges of the quantized tensors",
        "Bars: the values that calibration saw. Ticks: where quantization clips, the same on both sides "
        "of zero."
        if clipped
        else "Bars: the values that INT8 covers; what lies outside is clipped.",
        draw,
        rows=len(found) if named else 10,
    )


def waterfall(found: Waterfall, index: int) -> Plot | None:
    """Draw the planned bytes that each rewrite saves, steps of one rewrite taken together.

    `index` tells the plots of one page apart.
    """
    first, last = found.steps[0], found.steps[-1]
    saved: dict[str, tuple[int, int]] = {}  # planned bytes and kernels, by rewrite
    for before, after in pairwise(found.steps):
        size, kernels = saved.get(after.rewrite, (0, 0))
        saved[after.rewrite] = (
            size + after.activation_bytes - before.activation_bytes,
            kernels + after.kernels - before.kernels,
        )

    def draw(axes: Axes) -> None:
        reach = max(step.activation_bytes for step in found.steps) / _MEGA or 1.0

        def bar(row: int, left: float, width: float, colour: str, label: str) -> None:
            axes.barh(row, width, left=left, height=0.56, color=colour)
            axes.text(max(left, left + width) + 0.012 * reach, row, label, va="center")

        level = first.activation_bytes / _MEGA
        bar(0, 0.0, level, _SERIES[3], _cost(first.activation_bytes, first.kernels))
        for row, (size, kernels) in enumerate(saved.values(), start=1):
            colour = _SERIES[2] if size <= 0 else _SERIES[1]
            bar(row, level, size / _MEGA, colour, _cost(size, kernels, sign="+"))
            axes.plot([level, level], [row - 1, row], color=_INK, linewidth=0.7)
            level += size / _MEGA
        bar(len(saved) + 1, 0.0, level, _SERIES[0], _cost(last.activation_bytes, last.kernels))
        axes.plot([level, level], [len(saved), len(saved) + 1], color=_INK, linewidth=0.7)
        _rows(axes, [first.rewrite, *saved, "result"])
        axes.set_xlim(0, reach * 1.22)
        axes.set_xlabel("planned activation bytes per image, MB")

    return _plot(
        f"waterfall-{index}",
        f"What each rewrite brought: {found.artifact}",
        "Bytes are planned, not timed: what the compiler's plan reads and writes per image.",
        draw,
        rows=len(saved) + 2,
    )


def curve(points: Sequence[CurvePoint]) -> Plot | None:
    """Draw accuracy against the share of multiply-accumulates left in FP16; None below two points."""
    if len(points) < 2:  # noqa: PLR2004 - a curve needs two
        return None

    def draw(axes: Axes) -> None:
        axes.plot(
            [100 * point.macs_fp16_fraction for point in points],
            [float(point.sqnr_db or 0) for point in points],  # facts.curve keeps measured ones
            color=_SERIES[0],
            linewidth=1.8,
            marker="o",
            markersize=4,
        )
        axes.grid()
        axes.set_xlabel("multiply-accumulates left in FP16, %")
        axes.set_ylabel("SQNR in dB")

    return _plot(
        "curve",
        "Accuracy against cost of mixed precision",
        "Each point leaves one more of the most sensitive layers in FP16; measured on held-back samples.",
        draw,
        rows=9,
    )


def groups(
    name: str, title: str, caption: str, unit: str, values: Mapping[str, Mapping[str, float | None]]
) -> Plot | None:
    """Draw {row: {run: value}} as bars in groups, a colour per run; None where no value is there."""
    runs = list(dict.fromkeys(run for row in values.values() for run in row))
    rows = {row: by for row, by in values.items() if any(v is not None for v in by.values())}
    if not rows:
        return None
    step = 0.8 / len(runs)

    def draw(axes: Axes) -> None:
        reach = max(v for by in rows.values() for v in by.values() if v is not None)
        for i, run in enumerate(runs):
            places = [row - 0.4 + (i + 0.5) * step for row in range(len(rows))]
            widths = [by.get(run) for by in rows.values()]
            axes.barh(
                places,
                [w or 0.0 for w in widths],
                height=step * 0.86,
                color=_SERIES[i % len(_SERIES)],
                label=run,
            )
            for place, width in zip(places, widths, strict=True):
                text = "not measured" if width is None else f"{width:.3g}"
                axes.text((width or 0.0) + 0.012 * reach, place, text, va="center")
        _rows(axes, list(rows))
        axes.set_xlim(0, reach * 1.14 or 1.0)
        axes.set_xlabel(unit)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(runs), 3))

    return _plot(name, title, caption, draw, rows=len(rows) * max(1, round(len(runs) * 0.8)))


def front(points: Sequence[Point], name: str, target: str, what: str) -> Plot | None:
    """Draw accuracy against time with the Pareto front, whose points have a number; None without points.

    `what`: the share that is drawn, in words.
    """
    if not points:
        return None
    best = sorted((point for point in points if point.front), key=lambda point: point.ms)

    def draw(axes: Axes) -> None:
        for passed, colour in ((True, _SERIES[0]), (False, _SERIES[1])):
            for planned in (True, False):
                group = [p for p in points if p.passed == passed and p.planned == planned]
                face = "none" if planned else colour
                axes.scatter(
                    [p.ms for p in group],
                    [100 * p.share for p in group],
                    s=34,
                    facecolors=face,
                    edgecolors=colour,
                )
        for planned in (True, False):
            line = [p for p in best if p.planned == planned]
            axes.plot([p.ms for p in line], [100 * p.share for p in line], color=_SERIES[2], linewidth=1.4)
        for number, point in enumerate(best, 1):
            at = (point.ms, 100 * point.share)
            axes.annotate(str(number), at, xytext=(0, 6), textcoords="offset points", ha="center")
        axes.grid()
        axes.margins(0.08)
        axes.set_xlabel("ms per image")
        axes.set_ylabel(f"{what}, %")

    named = "; ".join(f"{number}: {_short(point.name)}" for number, point in enumerate(best, 1))
    return _plot(
        name,
        f"Accuracy against time: {target}",
        "Up and left is better. Hollow: planned by a roofline, filled: measured; orange: fails its verdicts. "
        f"Green: the Pareto front of each{f' ({named})' if named else ', which is empty: nothing passes'}.",
        draw,
        rows=10,
    )


def _p50(timing: Timing) -> str:
    return f"p50 {units.milliseconds(timing.p50_ms)}{'' if timing.stable else ', unstable'}"


def _cost(size: int, kernels: int, *, sign: str = "") -> str:
    """Label planned bytes and kernels; `sign` "+" for a change."""
    lead = sign if size > 0 else ""
    unit = "kernel" if abs(kernels) == 1 else "kernels"
    number = f"{kernels:{sign or '-'}d}" if kernels else "0"
    return f"{lead}{units.size(size)}, {number} {unit}"


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name horizontal rows, the first on top."""
    axes.set_yticks(range(len(names)), labels=[_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _short(name: str) -> str:
    """Keep both ends of a long name: its end tells layers apart."""
    half = _NAME_LENGTH // 2
    return name if len(name) <= _NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def _plot(name: str, title: str, caption: str, draw: Callable[[Axes], None], *, rows: int) -> Plot | None:
    if not available():
        return None
    import matplotlib.style  # noqa: PLC0415 - it takes a second, and is an optional extra
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.style.context(["default", dict(_STYLE)]), warnings.catch_warnings():
        # Text is drawn by the browser with its own fonts; matplotlib only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(_WIDTH_IN, 0.9 + _ROW_IN * rows))
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return Plot(name, title, caption, _inline(buffer.getvalue(), name, title, caption))


def _inline(document: str, name: str, title: str, caption: str) -> Markup:
    """Make matplotlib's SVG document a part of a page: unique ids, the page's colours, no outside names."""
    body = document[document.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a view box")
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", body).replace("xlink:href", "href")
    for colour, variable in _CSS.items():
        body = body.replace(colour, variable)
    width = _PX_PER_PT * float(box[1].split()[2])  # the same letter size in every plot
    head = (
        f'<svg class="plot" role="img" width="{width:.0f}" viewBox="{box[1]}" '
        f'aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(caption)}</desc>'
    )
    return Markup(head + body.rstrip())  # noqa: S704 - matplotlib escapes what it draws
