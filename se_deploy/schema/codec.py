"""Typed values <-> JSON text; what the type does not allow becomes an error that names the field."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from se_deploy import files

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.errors import SeDeployError

T = TypeVar("T")

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_LARGE_NUMBER = re.compile(r"NaN|Infinity|\d[eE]\+?\d\d\d|\d{300}")
_SHOWN = 60  # characters of a refused value


def encode(value: object, *, indent: int | None = 2) -> str:
    """Return `value` as JSON in ASCII: it can be printed and read back in any locale."""
    return json.dumps(builtins(value), indent=indent, allow_nan=False)


def builtins(value: object) -> Any:  # noqa: ANN401 - dicts, lists, numbers and texts, as JSON has them
    """Return `value` as the dicts and lists that its JSON holds."""
    return msgspec.to_builtins(value, str_keys=True)


def decode(text: str | bytes, kind: type[T], *, what: str, error: type[SeDeployError], hint: str) -> T:
    """Return the `kind` that `text` holds; keys that it does not know are from a newer version, and ignored.

    `what` names the text in the message, as in "'cache.json', a calibration cache".
    Raises: `error` for no JSON, and for a field that is missing, of another type or out of range.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        fields = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise error(f"{what}, is no JSON: {files.reason_of(e)}", hint=hint) from e
    try:
        made = convert(fields, kind, what=what, error=error, hint=hint)
        _check_writable(text, fields)
    except (ValueError, RecursionError) as e:
        raise error(f"{what}, holds what JSON cannot: {files.reason_of(e)}", hint=hint) from e
    return made


def _check_writable(text: str, fields: object) -> None:
    """Raise ValueError for what is no finite number, which Python reads and JSON cannot hold."""
    if _LARGE_NUMBER.search(text):
        json.dumps(fields, allow_nan=False)


def convert(fields: object, kind: type[T], *, what: str, error: type[SeDeployError], hint: str) -> T:
    """Return the `kind` that dicts and lists hold, as from JSON or TOML. Raises: as `decode`."""
    config = getattr(kind, "__struct_config__", None)  # a union of types has none, and needs the tag anyway
    tag = config.tag_field if config is not None else None
    if tag is not None and isinstance(fields, dict) and tag not in fields:
        raise error(f"{what}: it has no '{tag}'", hint=hint)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as e:
        raise error(f"{what}: {_reason(e, fields, kind)}", hint=hint) from e


def load(path: Path, kind: type[T], *, what: str, error: type[SeDeployError], hint: str) -> T:
    """Return what the file `path` holds. Raises: as `decode`, also where the file cannot be read."""
    text = files.read_bytes(path, error=error, most=files.LARGEST_TEXT, what=what)
    return decode(text, kind, what=f"'{path}', {what}", error=error, hint=hint)


def _reason(refusal: msgspec.ValidationError, fields: object, kind: type) -> str:
    """Return the field, the value that is there, and what is wrong with it."""
    message, _, where = str(refusal).partition(" - at `")
    message, where = message[:1].lower() + message[1:], where.removesuffix("`")
    if not where.startswith("$"):
        return f"{message}, at {where}" if where else message
    steps = _steps(where, str(refusal), fields, kind)
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    value = _at(fields, steps)
    shown = "" if isinstance(value, (dict, list)) else f" is {_shown(value)}"
    return f"'{name}'{shown}: {message}"


def _shown(value: object) -> str:
    """Return a value as JSON writes it, cut short; TOML has dates too, and integers of any length."""
    try:
        return json.dumps(value, default=str)[:_SHOWN]
    except ValueError:
        return "a number of thousands of digits"


def _steps(where: str, refusal: str, fields: object, kind: type) -> list[str | int]:
    """Return the keys that lead to the field; msgspec writes any key of a mapping as [...]."""
    steps: list[str | int] = []
    for name, index in _STEP.findall(where):
        if index == "...":
            steps.append(
                next(key for key in _at(fields, steps) if _fails(fields, [*steps, key], refusal, kind))
            )
        else:
            steps.append(int(index) if index else name)
    return steps


def _fails(fields: object, steps: list[str | int], refusal: str, kind: type) -> bool:
    """Whether the same refusal comes where the last of `steps` is the only key of its mapping."""
    alone = {steps[-1]: _at(fields, steps)}
    try:
        msgspec.convert(_replaced(fields, steps[:-1], alone), kind)
    except msgspec.ValidationError as e:
        return str(e) == refusal
    return False


def _at(fields: Any, steps: list[str | int]) -> Any:  # noqa: ANN401 - a value of a JSON object
    for step in steps:
        fields = fields[step]
    return fields


def _replaced(fields: Any, steps: list[str | int], value: object) -> object:  # noqa: ANN401 - as above
    if not steps:
        return value
    made = fields.copy()
    made[steps[0]] = _replaced(fields[steps[0]], steps[1:], value)
    return made
