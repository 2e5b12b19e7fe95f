"""Layers that write in place, exported as layers that write elsewhere: where that is the same network."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TypeGuard

    from torch import nn

_PLAIN = (torch.Tensor, torch.nn.Parameter)


@contextlib.contextmanager
def out_of_place(module: nn.Module, examples: Sequence[torch.Tensor], named: str) -> Iterator[None]:
    """Let layers that write in place write elsewhere while the block runs, where that is the same network.

    `named`: what the names of their classes hold, in small letters; "" for all layers. The graph is the same,
    and traced faster: an operator that writes in place is taken apart into elementary ones, with symbolic
    sizes. Where a network reads what a layer overwrote, its layers are left as they are. Equal answers alone
    do not tell: a bound that no example reaches overwrites a tensor with itself.
    """
    layers = [
        layer
        for layer in module.modules()
        if vars(layer).get("inplace") is True and named in type(layer).__name__.lower()
    ]
    try:
        if layers:
            in_place = _Watched()
            known = in_place.answers(module, examples)
            for layer in layers:
                vars(layer)["inplace"] = False
            elsewhere = _Watched(in_place)
            now = elsewhere.answers(module, examples)
            if not elsewhere.same or not _equal(known, now):
                for layer in layers:
                    vars(layer)["inplace"] = True
        yield
    finally:
        for layer in layers:
            vars(layer)["inplace"] = True


@dataclass(frozen=True, slots=True)
class _Call:
    """An operator as it was called."""

    name: str  # without what says that it writes in place
    settings: tuple[object, ...]  # whatever is no tensor
    written: tuple[int, ...]  # the arguments that it overwrites


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch names no types here
    """Runs a module and notes its operators; beside an earlier run, whether it computes the same."""

    def __init__(self, earlier: _Watched | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.same = True  # as the earlier run, as far as it went
        self._earlier = earlier
        self._overwritten: set[StorageWeakRef] = set()  # weak: every activation would stay in memory

    def answers(self, module: nn.Module, examples: Iterable[torch.Tensor]) -> list[object]:
        """Return the leaves of what a module gives for copies of its examples."""
        with torch.no_grad(), self:
            found = pytree.tree_leaves(module(*[one.clone() for one in examples]))
        self._read(found)
        if self._earlier is not None:
            self.same &= self._earlier.same and len(self.calls) == len(self._earlier.calls)
        return found

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operator, its arguments looked at first."""
        del types
        given = pytree.tree_leaves((args, dict(kwargs or {})))
        self._read(given)
        call = _called(func, [one for one in given if not torch.is_tensor(one)])
        if self._earlier is not None:
            self._compare(call, args)
        self.calls.append(call)
        return func(*args, **(kwargs or {}))

    def _compare(self, call: _Call, args: Sequence[object]) -> None:
        """Note what the earlier run overwrote at this place and this one leaves as it is."""
        known = self._earlier.calls if self._earlier is not None else []
        was = known[len(self.calls)] if len(self.calls) < len(known) else None
        if was is None or (was.name, was.settings) != (call.name, call.settings):
            self.same = False
            return
        for position in set(was.written) - set(call.written):
            self.same &= position < len(args)  # else it is named
            left = pytree.tree_leaves(args[position : position + 1])
            self._overwritten |= {_place(one) for one in left if _is_plain(one)}

    def _read(self, values: Iterable[object]) -> None:
        for one in values:
            if torch.is_tensor(one) and (not _is_plain(one) or _place(one) in self._overwritten):
                self.same = False


def _called(func: Any, settings: Iterable[object]) -> _Call:  # noqa: ANN401 - an operator
    schema = func._schema  # noqa: SLF001 - torch has no other name for it
    written = [
        i for i, one in enumerate(schema.arguments) if one.alias_info is not None and one.alias_info.is_write
    ]
    name = f"{schema.name.removesuffix('_')}.{schema.overload_name}"
    return _Call(name, tuple(settings), tuple(written))


def _is_plain(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a tensor's numbers are where it says; those of other classes may be anywhere."""
    return isinstance(value, torch.Tensor) and type(value) in _PLAIN and value.layout == torch.strided


def _place(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _equal(known: Sequence[object], now: Sequence[object]) -> bool:
    """Whether two runs gave exactly the same; NaN is equal to nothing."""
    return len(known) == len(now) and all(
        isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
        for a, b in zip(known, now, strict=True)
    )
