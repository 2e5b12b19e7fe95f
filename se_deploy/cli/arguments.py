"""A command's flags as the library's option types: pure translation, imported when a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from se_deploy.backends.engine import Profile
from se_deploy.options import CalibrationOptions, ImageOptions, NetworkOptions, RewriteOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.verification import Verified

Params = dict[str, Any]


def network(params: Params) -> NetworkOptions:
    """--checkpoint, --model-arg, --pretrained, --input-size, --opset, --batch, --seed."""
    return NetworkOptions(
        checkpoint=params.get("checkpoint"),
        model_args=dict(params.get("model_args", ())),
        pretrained=params.get("pretrained", False),
        input_size=params.get("input_size"),
        opset=params.get("opset", 20),
        batch=params.get("batch"),
        seed=params["seed"],
    )


def image(params: Params) -> ImageOptions:
    """--mean, --std, --resize, --crop, --labels, --input-size."""
    return ImageOptions(
        mean=params.get("mean"),
        std=params.get("std"),
        resize=params.get("resize"),
        crop=params.get("crop"),
        labels=params.get("labels"),
        size=params.get("input_size"),
    )


def rewrites(params: Params) -> RewriteOptions:
    """--rewrites, --no-rewrites, --replay, --search-plans, --search-seconds."""
    given = [f"--{flag.replace('_', '-')}" for flag in ("no_rewrites", "rewrites", "replay") if params[flag]]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} contradict each other")
    return RewriteOptions(
        names=() if params["no_rewrites"] else params["rewrites"],
        search_plans=params["search_plans"],
        search_seconds=params["search_seconds"],
        replay=params["replay"],
    )


def calibration(params: Params) -> CalibrationOptions:
    """--calib-..., --policy, --min-sqnr, --max-drop, --keep, --exclude-nodes, ..."""
    return CalibrationOptions(
        data=params["calib_data"],
        samples=params["calib_samples"],
        method=params["calib_method"],
        cache=params["calib_cache"],
        exclude_nodes=params["exclude_nodes"],
        skip_unreadable=params["skip_unreadable"],
        allow_random=params["allow_random_calibration"],
        policy=params["policy"],
        min_sqnr_db=params["min_sqnr"],
        max_drop_points=params["max_drop"],
        keep_fraction=_fraction(params["keep"]),
        seed=params["seed"],
    )


def shapes(params: Params) -> dict[str, Profile]:
    """--min-shapes, --opt-shapes, --max-shapes by input; a missing one is the nearest that was given."""
    given = {key: dict(params[f"{key}_shapes"]) for key in ("min", "opt", "max")}
    names = {name for shapes in given.values() for name in shapes}
    result = {}
    for name in sorted(names):
        low, opt, high = (given[key].get(name) for key in ("min", "opt", "max"))
        tuned: tuple[int, ...] = opt or low or high or ()
        result[name] = Profile(low or tuned, tuned, high or tuned)
    return result


def failed_gates(params: Params, verdicts: Mapping[str, Sequence[str]]) -> list[str]:
    """Give the failures of the gates that were asked for: --gate NAME, or all under --strict."""
    wanted = {"fusion" if name == "fused" else name for name in params["gates"]}
    for name in sorted(wanted - verdicts.keys()):
        raise click.UsageError(f"this command has no verdict '{name}' to gate on")
    return [text for name, texts in verdicts.items() if params["strict"] or name in wanted for text in texts]


def wrong(params: Params, verified: Verified) -> list[str]:
    """Give what `verified` fails on: wrong answers always, what was taken back and presets when gated."""
    strict = params["strict"]
    gated = strict or "parity" in params["gates"]
    failures = [
        *verified.wrong,
        *(verified.taken_back if strict else ()),
        *(verified.missed if gated else ()),
    ]
    return [failure.text for failure in failures]


def _fraction(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise click.UsageError(f"--keep '{text}' is no share; write it as 10%") from e
    if not 0 <= value <= 1:
        raise click.UsageError(f"--keep '{text}' is not between 0% and 100%")
    return value
