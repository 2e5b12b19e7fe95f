"""Backends by name: the ones that come with this package, and those that other packages bring along.

A package adds a backend by an entry point in the group `se_deploy.backends`: its name is the backend's, its
value a `Backend`. Names are known without importing anything, so that --help stays light; a backend's folder
is imported when it is asked for, what it runs on only when it is opened.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from se_deploy.backends.backend import Backend, SessionOptions
from se_deploy.errors import BadInput, MissingRuntime, meant
from se_deploy.quantization.policies import PORTABLE, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from se_deploy.frontend.zoo import Network
    from se_deploy.protocols import Runtime, Session
    from se_deploy.quantization.reconstruction import Trainer

GROUP = "se_deploy.backends"
AUTO = "auto"
"""What --runtime says where the choice is left to the command."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a backend's value is."""

    name: str
    module: str
    attribute: str
    package: str = "se-deploy"
    choosable: bool = True  # whether --runtime takes it: the reference makes no artifacts


_BUILT_IN = (
    _Entry("torch", "se_deploy.backends.pytorch", "BACKEND", choosable=False),
    _Entry("tensorrt-rtx", "se_deploy.backends.tensorrt", "TENSORRT_RTX"),
    _Entry("tensorrt", "se_deploy.backends.tensorrt", "TENSORRT"),
    _Entry("onnxruntime", "se_deploy.backends.onnxruntime", "BACKEND"),
)
"""In order of preference where several can do the same."""


@functools.cache
def _entries() -> dict[str, _Entry]:
    """Return every backend's entry by name, the built-in ones first: no package replaces them."""
    found = {entry.name: entry for entry in _BUILT_IN}
    for point in metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.module
        found.setdefault(point.name, _Entry(point.name, point.module, point.attr, package))
    return found


def forget() -> None:
    """Look for entry points again when next asked: sys.path has changed."""
    _entries.cache_clear()
    get.cache_clear()


def names() -> tuple[str, ...]:
    """Return the names of all backends, in order of preference; imports none."""
    return tuple(_entries())


def choices() -> tuple[str, ...]:
    """Return what --runtime takes; imports no backend."""
    return (AUTO, *(entry.name for entry in _entries().values() if entry.choosable))


@functools.cache
def get(name: str) -> Backend:
    """Return the backend `name`.

    Raises: BadInput where there is none of that name; MissingRuntime where the package that brings it fails.
    """
    entry = _entries().get(name)
    if entry is None:
        raise BadInput(f"there is no backend '{name}'", hint=f"choose from {', '.join(names())}")
    try:
        backend = getattr(importlib.import_module(entry.module), entry.attribute)
    except (ImportError, AttributeError) as e:
        raise MissingRuntime(
            f"the backend '{name}' of the package '{entry.package}' cannot be loaded: {e}",
            hint=f"pip install --upgrade {entry.package}, or remove it",
        ) from e
    if not isinstance(backend, Backend) or backend.name != name:
        raise MissingRuntime(
            f"the package '{entry.package}' brings no backend '{name}', but {backend!r}"[:200],
            hint=f"pip install --upgrade {entry.package}, or remove it",
        )
    return backend


def chosen(runtime: str) -> Backend | None:
    """Return the backend that --runtime names; None for "auto". Raises: BadInput, MissingRuntime."""
    if runtime == AUTO:
        return None
    if runtime not in choices():
        raise BadInput(f"'{runtime}' is no runtime", hint=f"choose from {', '.join(choices())}")
    return get(runtime)


def every() -> Iterator[Backend]:
    """Yield the backends that can be loaded, in order of preference; `doctor` says which cannot, and why."""
    for name in names():
        with contextlib.suppress(MissingRuntime):
            yield get(name)


def graphs() -> Backend:
    """Return the backend that runs ONNX graphs: the first that does."""
    return next(backend for backend in every() if "onnx" in backend.runs)


def graph_runtime(options: SessionOptions | None = None) -> Runtime:
    """Return what runs ONNX graphs."""
    return _runtime(graphs(), options or SessionOptions())


def engine_runtime(backend: Backend, options: SessionOptions | None = None) -> Runtime:
    """Return what runs the engines of `backend`. Raises: BadInput where it runs none."""
    if "engine" not in backend.runs:
        raise BadInput(f"{backend.title} runs no engines", hint="`se-deploy doctor` says what runs here")
    return _runtime(backend, options or SessionOptions())


def _runtime(backend: Backend, options: SessionOptions) -> Runtime:
    if backend.runtime is None:
        raise ValueError(f"the backend '{backend.name}' says that it runs files, and has no runtime")
    return backend.runtime(options)


def reference() -> Backend:
    """Return the backend that runs PyTorch's networks: what every artifact is compared with."""
    return next(backend for backend in every() if backend.network is not None)


def network_session(network: Network | nn.Module, options: SessionOptions | None = None) -> Session:
    """Open a network in its own framework. Raises: MissingRuntime without the device."""
    opened = reference().network
    assert opened is not None  # noqa: S101 - reference() looks for it
    return opened(network, options or SessionOptions())


def trainer() -> Trainer:
    """Return what trains INT8 roundings. Raises: MissingRuntime with the install command."""
    made = next(backend.trainer for backend in every() if backend.trainer is not None)
    return made()


def of_suffix(suffix: str) -> tuple[Backend, ...]:
    """Return the backends whose engines end in `suffix`; packages are asked where no built-in one has it."""
    own = tuple(b for entry in _BUILT_IN if suffix in (b := get(entry.name)).suffixes)
    return own or tuple(b for b in every() if suffix in b.suffixes)


def suffixes() -> tuple[str, ...]:
    """Return every ending of an engine's file."""
    return tuple(dict.fromkeys(suffix for backend in every() for suffix in backend.suffixes))


def policies() -> dict[str, Policy]:
    """Return the quantization policies by name: the portable one, and those of backends with their own."""
    own = [backend.form().policy for backend in every()]
    return {policy.name: policy for policy in (PORTABLE, *own)}


def policy(name: str) -> Policy:
    """Return the quantization policy of this name. Raises: BadInput."""
    known = policies()
    if name not in known:
        raise BadInput(
            f"there is no policy '{name}'", hint=f"{meant(name, known)}choose one of {', '.join(known)}"
        )
    return known[name]


def title(name: str) -> str:
    """Return a backend's title; the name itself where it comes from a backend that is not here."""
    return get(name).title if name in names() else name
