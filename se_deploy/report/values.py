"""Careful reading of JSON objects: what is missing, null or of another type becomes None or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def at(value: object, *path: str) -> Any:  # noqa: ANN401 - a value of a JSON object
    """Walk into nested objects; None where a key is missing or leads nowhere."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(value: object) -> float | None:
    """Give a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def count(value: object) -> int | None:
    """Give a whole number, else None."""
    found = number(value)
    return None if found is None else round(found)


def objects(value: object) -> tuple[Json, ...]:
    """Give the objects in a list; () where there is none."""
    return tuple(entry for entry in sequence(value) if isinstance(entry, Mapping))


def texts(value: object) -> tuple[str, ...]:
    """Give the entries of a list as text; () where there is none."""
    return tuple(str(entry) for entry in sequence(value))


def flag(value: object) -> bool | None:
    """Give true or false, else None."""
    return value if isinstance(value, bool) else None


def wording(value: object) -> str | None:
    """Give a value as text; None where it is null or empty."""
    return str(value) if value not in (None, "") else None


def sequence(value: object) -> Sequence[object]:
    """Give a list; () for anything else, text included."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def change(value: object, base: object) -> float | None:
    """Give the relative change from `base`; None where either is unknown or the base is zero."""
    now, before = number(value), number(base)
    return now / before - 1 if now is not None and before else None
