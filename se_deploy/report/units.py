"""Numbers as people read them, each with its unit; None is never shown as a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from se_deploy.schema.results import OutputParity

MISSING = "not measured"
UNSTABLE = "unstable"
"""What stands for a timing that is no figure to rely on."""

_MEGA = 1e6
_KILO = 1e3
IDENTICAL_DB = 200.0  # comparison.IDENTICAL_DB, whose module imports onnx; a test holds them together


def number(value: object) -> float | None:
    """Return a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def change(value: object, base: object) -> float | None:
    """Return the relative change from `base`; None where either is unknown or the base is zero."""
    now, before = number(value), number(base)
    return now / before - 1 if now is not None and before else None


def mega(value: object) -> float | None:
    """Return millions of a number; None stays None."""
    found = number(value)
    return None if found is None else found / _MEGA


def size(value: object) -> str:
    """Write bytes in the decimal unit that keeps three digits."""
    found = number(value)
    if found is None:
        return MISSING
    if abs(found) >= _MEGA:
        return f"{found / _MEGA:.2f} MB"
    return f"{found / _KILO:.1f} kB" if abs(found) >= _KILO else f"{found:.0f} B"


def whole(value: object) -> str:
    """Write a count with its thousands apart."""
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def amount(value: object) -> str:
    """Write a large count in thousands, millions or thousands of millions."""
    found = number(value)
    if found is None:
        return MISSING
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if found >= scale:
            return f"{found / scale:.3g} {suffix}"
    return f"{found:.0f}"


def count(value: object, noun: str) -> str:
    """Write a count with its noun: "1 kernel", "4 kernels"."""
    return f"{whole(value)} {noun}" if number(value) == 1 else f"{whole(value)} {noun}s"


def milliseconds(value: object) -> str:
    """Write ms with three digits, all of them where there are more."""
    found = number(value)
    if found is None:
        return MISSING
    return f"{whole(found)} ms" if abs(found) >= _KILO else f"{found:.3g} ms"


def seconds(value: object) -> str:
    """Write s with three digits."""
    found = number(value)
    return MISSING if found is None else f"{found:.3g} s"


def watts(value: object) -> str:
    """Write W with three digits."""
    found = number(value)
    return MISSING if found is None else f"{found:.3g} W"


def millijoules(value: object) -> str:
    """Write mJ with three digits."""
    found = number(value)
    return MISSING if found is None else f"{found:.3g} mJ"


def percent(value: object) -> str:
    """Write a fraction in percent with two decimals: a tenth of a point is what INT8 is judged by."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:.2f} %"


def signed_percent(value: object) -> str:
    """Write a change in percent."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:+.0f} %"


def decibel(value: object) -> str:
    """Write a ratio in dB; the stand-in for an infinite one in words."""
    found = number(value)
    if found is None:
        return MISSING
    return "identical" if found >= IDENTICAL_DB else f"{found:.1f} dB"


def factor(value: object) -> str:
    """Write a speed-up."""
    found = number(value)
    return MISSING if found is None else f"{found:.2f}\N{MULTIPLICATION SIGN}"


def plain(value: object) -> str:
    """Write a small number with three digits."""
    found = number(value)
    return MISSING if found is None else f"{found:.3g}"


def cosine(value: object) -> str:
    """Write a cosine so that 0.9999 and 1 differ."""
    found = number(value)
    return MISSING if found is None else f"{found:.6f}"


def agreements(output: OutputParity) -> tuple[str, ...]:
    """Return the shares of equal answers that an output has, in words."""
    boxes = output.kind in {"boxes", "scores"}
    shares = (
        ("top-1 agreement", None if output.kind == "labels" else output.top1_agreement),
        ("top-5 agreement", output.top5_agreement),
        ("IoU" if boxes else "mean IoU", output.iou),
        ("with a partner" if boxes else "equal values", output.agreement),
    )
    return tuple(f"{name} {percent(share)}" for name, share in shares if share is not None)


def word(value: object) -> str:
    """Write a text, or that it is not known."""
    return "not known" if value is None or value == "" else str(value)


FILTERS: dict[str, Callable[[object], str]] = {
    "size": size,
    "whole": whole,
    "amount": amount,
    "milliseconds": milliseconds,
    "seconds": seconds,
    "watts": watts,
    "millijoules": millijoules,
    "percent": percent,
    "signed_percent": signed_percent,
    "decibel": decibel,
    "factor": factor,
    "plain": plain,
    "cosine": cosine,
    "word": word,
}
