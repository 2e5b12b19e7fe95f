"""Weights from a file into a module: read as tensors only, nothing in the file is executed."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

import torch

from se_deploy import extras, files, torch_files
from se_deploy.errors import BadModel, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    _State = dict[str, torch.Tensor]

_NESTED = (
    "state_dict", "state_dict_ema", "model_state_dict", "model_ema", "model", "net", "network", "module",
    "weights", "params", "params_ema", "ema_state_dict", "ema",
)  # fmt: skip
_WRAPPERS = frozenset({
    "module",  # nn.DataParallel and DistributedDataParallel, AveragedModel, timm's averages
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
})  # fmt: skip
"""What wrappers call the network inside them, wherever in a key."""
_AVERAGED = "n_averaged"
"""torch.optim.swa_utils.AveragedModel counts here, beside `module.`, how often it was updated."""
_SHOWN_KEYS = 6


def load(module: nn.Module, path: Path) -> tuple[str, ...]:
    """What a user must hear of, once a state dict is in `module`: safetensors or `.pth`, as tensors only.

    A dict nested under `state_dict`, `model`, `model_ema`, ... is found. So is a network inside another
    module: what wrappers add to keys is stripped, and the one prefix with just its keys is taken.
    Raises: BadModel where it is no state dict, of another network, of several, or not finite.
    """
    files.check_regular(path, error=BadModel)
    whole, notes = _read_state(path)
    wanted = module.state_dict()
    state, found = _of_network(module, wanted, whole, path)
    missing = sorted(wanted.keys() - state.keys() - _optional(wanted))
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
    return (*notes, *found)


def _optional(wanted: Mapping[str, torch.Tensor]) -> set[str]:
    return {key for key in wanted if key.endswith("num_batches_tracked")}


def _of_network(
    module: nn.Module, wanted: Mapping[str, torch.Tensor], state: _State, path: Path
) -> tuple[_State, tuple[str, ...]]:
    """Return the network's own part of a state, under its own names, and what must be said of the rest.

    Where no part has just its keys the whole comes back, without wrappers, for the caller to refuse.
    """
    from se_deploy import networks  # noqa: PLC0415 - the zoo is loaded only where it is used

    wrappers = _WRAPPERS.difference(*(key.split(".") for key in wanted))
    plain = {
        ".".join(word for word in key.split(".") if word not in wrappers): value
        for key, value in state.items()
    }
    if len(plain) < len(state):  # two keys would be one
        plain = state
    needed = wanted.keys() - _optional(wanted)
    for keys in (state, plain):
        fitting = {}
        for prefix in _prefixes(keys, len(needed)):
            part = {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)}
            if not prefix:
                part.pop(_AVERAGED, None)
            own = networks.adapt(module, part)
            if needed <= own.keys() <= wanted.keys():
                fitting[prefix] = own
        if fitting:
            first, *others = fitting
            if not all(_equal(fitting[first], fitting[other]) for other in others):
                raise BadModel(
                    f"'{path}' holds several sets of this network's weights, under "
                    f"{' and '.join(repr(prefix) for prefix in fitting)}",
                    hint="save the one that is meant alone, under the network's own names",
                )
            left = [k for k in keys if k == _AVERAGED or not k.startswith(tuple(fitting))]
            return fitting[first], _said_of(path, first, left, keys)
    first_words = {key.partition(".")[0] for key in plain}
    if len(first_words) == 1 and not first_words & {key.partition(".")[0] for key in wanted}:
        plain = {key.partition(".")[2]: value for key, value in plain.items()}
    return networks.adapt(module, plain), ()


def _prefixes(state: _State, least: int) -> list[str]:
    """Return "" and what so many keys, whole modules deep, begin with."""
    counts = Counter(key[: at + 1] for key in state for at, character in enumerate(key) if character == ".")
    return ["", *(prefix for prefix, count in counts.items() if count >= least)]


def _equal(one: _State, other: _State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _said_of(path: Path, prefix: str, left: Sequence[str], state: _State) -> tuple[str, ...]:
    if not left:
        return ()
    if set(left) == {_AVERAGED}:
        updates = int(state[_AVERAGED].sum())
        of = counted(updates, "update") if updates else "never updated: the weights that it began with"
        return (f"'{path.name}' holds an average of the network's weights, which was taken ({of})",)
    more = f" and {len(left) - _SHOWN_KEYS} more" if len(left) > _SHOWN_KEYS else ""
    others = ", ".join(f"'{key}'" for key in left[:_SHOWN_KEYS])
    return (f"'{path.name}' holds the weights under '{prefix}', which were taken; left: {others}{more}",)


def _read_state(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    if path.suffix == ".safetensors":
        with extras.needed_for(f"'{path}'"):
            from safetensors import SafetensorError  # noqa: PLC0415 - only where such a file is read
            from safetensors.torch import load_file  # noqa: PLC0415

        own, hint = (SafetensorError,), "save it again"
        with files.parsing(path, "cannot be read as safetensors", error=BadModel, hint=hint, also=own):
            return load_file(path), ()
    if torch_files.kind_of(path) == "TorchScript":
        raise BadModel(
            f"'{path}' is a TorchScript network, no state dict",
            hint="write its weights alone: torch.save(torch.jit.load(FILE).state_dict(), OUT)",
        )
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
    while isinstance(loaded, dict) and (key := _nested(loaded)) is not None:
        others = [f"'{name}'" for name, value in loaded.items() if name != key and _is_set(value)]
        if others:
            said = f"weights under '{key}', which were taken, and under {', '.join(others)}"
            notes += (f"'{path.name}' holds {said}; for others save them alone",)
        loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise BadModel(f"'{path}' holds no state dict", hint="save it with torch.save(network.state_dict())")
    for key, value in loaded.items():
        if wrong := _no_weights(key, value):
            raise BadModel(
                f"'{path}' is no state dict: its entry '{key}' {wrong}",
                hint="save it with torch.save(network.state_dict(), FILE)",
            )
    return loaded, notes


def _nested(loaded: Mapping[object, object]) -> str | None:
    return next((key for key in _NESTED if isinstance(loaded.get(key), dict)), None)


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
