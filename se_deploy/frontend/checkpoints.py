"""Weights from a file into a module: read as tensors only, nothing in the file is executed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from se_deploy import extras, files
from se_deploy.errors import BadModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

_NESTED = ("state_dict", "state_dict_ema", "model_state_dict", "model_ema", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN_KEYS = 6


def load(module: nn.Module, path: Path) -> tuple[str, ...]:
    """What a user must hear of, once a state dict is in `module`: safetensors or `.pth`, as tensors only.

    A dict nested under `state_dict`, `model`, `model_ema`, ... is found, prefixes such as `module.` are
    stripped. Raises: BadModel where it is no state dict, of another network, or not finite.
    """
    from se_deploy import networks  # noqa: PLC0415 - the zoo is loaded only where it is used

    files.check_regular(path, error=BadModel)
    state, notes = _read_state(path)
    wanted = module.state_dict()
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state) and not _has_prefix(wanted, prefix):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = networks.adapt(module, state)
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - wanted.keys())
    reshaped = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if missing or unexpected or reshaped:
        raise BadModel(
            f"'{path}' is a checkpoint of another network: {_difference(missing, unexpected, reshaped)}",
            hint=_mismatch_hint(wanted, state, reshaped),
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BadModel(f"'{path}' holds NaN or infinite values in '{bad[0]}'", hint="use another checkpoint")
    module.load_state_dict(state, strict=False)  # only num_batches_tracked may still be missing
    return notes


def _read_state(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    if path.suffix == ".safetensors":
        with extras.needed_for(f"'{path}'"):
            from safetensors import SafetensorError  # noqa: PLC0415 - only where such a file is read
            from safetensors.torch import load_file  # noqa: PLC0415

        own, hint = (SafetensorError,), "save it again"
        with files.parsing(path, "cannot be read as safetensors", error=BadModel, hint=hint, also=own):
            return load_file(path), ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle's protocol before it refuses it
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except files.DAMAGED as e:
        raise BadModel(
            f"'{path}' is no plain state dict, and what else is in it is never executed",
            hint="save it with torch.save(network.state_dict(), FILE) or as safetensors",
        ) from e
    notes: tuple[str, ...] = ()
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            others = [f"'{name}'" for name, value in loaded.items() if name != key and _is_set(value)]
            if others:
                said = f"weights under '{key}', which were taken, and under {', '.join(others)}"
                notes = (f"'{path.name}' holds {said}; for others save them alone",)
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise BadModel(f"'{path}' holds no state dict", hint="save it with torch.save(network.state_dict())")
    for key, value in loaded.items():
        if wrong := _no_weights(key, value):
            raise BadModel(
                f"'{path}' is no state dict: its entry '{key}' {wrong}",
                hint="save it with torch.save(network.state_dict(), FILE)",
            )
    return loaded, notes


def _is_set(value: object) -> bool:
    """Whether an entry beside the weights is a set of weights too, or holds one, as an average's does."""
    if not isinstance(value, dict) or not value:
        return False
    if all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in value.items()):
        return True
    return any(isinstance(name, str) and _is_set(one) for name, one in value.items())


def _no_weights(key: object, value: object) -> str | None:
    """Return what keeps an entry from being weights; None where nothing does."""
    if not isinstance(key, str):
        return "has no text for a name"
    if not isinstance(value, torch.Tensor):
        return "is no tensor"
    if value.layout != torch.strided or value.is_quantized:
        return "is a sparse or quantized tensor"
    if value.device.type == "meta":
        return "has no values: it is on the meta device"
    held = (
        value.untyped_storage().nbytes() // value.element_size()
    )  # an expanded tensor is larger than its file
    return f"says it has {value.numel():,} numbers and holds {held:,}" if value.numel() > held else None


def _has_prefix(wanted: Mapping[str, torch.Tensor], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in wanted)


def _difference(missing: Sequence[str], unexpected: Sequence[str], reshaped: Sequence[str]) -> str:
    parts = []
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)):
        if keys:
            more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
            parts.append(f"{len(keys)} {what} ({', '.join(keys[:_SHOWN_KEYS])}{more})")
    return "; ".join(parts)


def _mismatch_hint(
    wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], reshaped: Sequence[str]
) -> str:
    heads = [key for key in reshaped if key.endswith("weight")]
    last_weight = [key for key in wanted if key.endswith("weight")][-1:]
    if heads and heads == last_weight:
        return f"its head differs: pass --model-arg num_classes={state[heads[0]].shape[0]}"
    return "name the network that this checkpoint was saved from, with its --model-arg"
