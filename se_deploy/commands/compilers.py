"""Which backend builds an engine, and for which GPU, where the user leaves it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.backends import registry
from se_deploy.errors import BadInput, MissingRuntime, SeDeployError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.backends.backend import Backend, Engines
    from se_deploy.targets import Target


_FIRST_WITH_BF16 = 80
"""CUDA C++ Programming Guide, "Arithmetic Instructions"; TensorRT-RTX refuses it for 7.5 in its own words."""


def compiler_for(asked: Backend | None, targets: Sequence[Target]) -> Backend:
    """Return the backend that builds: the one asked for, else the first here that builds for the targets.

    Without targets that is the first that builds for the GPU at hand, so that the engine runs here; where
    none does, or there is no GPU, the first that builds at all.
    Raises: BadInput for a backend that builds nothing; where nothing was asked for and nothing here builds
    for the targets, BadInput or MissingRuntime with what each backend says.
    """
    if asked is not None:
        engines_of(asked)
        return asked
    refusals: dict[str, SeDeployError] = {}
    elsewhere: list[Backend] = []  # what builds, and not for the GPU at hand
    for name in registry.names():
        try:
            backend = registry.get(name)
            if backend.engines is None:
                continue
            compiler = backend.engines.compiler()
        except MissingRuntime as e:
            refusals[name] = e
            continue
        here = backend.engines.here()
        try:
            for target in targets or ([here] if here else []):
                compiler.check_target(target)
        except BadInput as e:
            refusals[name] = e
            elsewhere += [] if targets else [backend]
            continue
        finally:
            compiler.close()
        return backend
    if elsewhere:
        return elsewhere[0]
    first = next(iter(refusals.values()))
    message = "; ".join(e.message for e in refusals.values())
    kind = BadInput if any(isinstance(e, BadInput) for e in refusals.values()) else MissingRuntime
    raise kind(f"nothing here builds an engine for {_these(targets)}: {message}", hint=first.hint)


def targets_for(backend: Backend, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return what is built for: the targets asked for, else the backend's own choice on this machine."""
    return tuple(targets) or engines_of(backend).default_targets()


def refuse_bf16(backend: Backend, targets: Sequence[Target]) -> None:
    """Raise BadInput, before any work is done, where a target has no bfloat16: it came with Ampere, 8.0."""
    here = engines_of(backend).here()
    for target in targets_for(backend, targets) or ([here] if here else []):
        if target.sm < _FIRST_WITH_BF16:
            raise BadInput(
                f"{target.called} has no BF16: the first is compute capability 8.0", hint="use --fp16"
            )


def runs_elsewhere(backend: Backend, targets: Sequence[Target]) -> tuple[str, ...]:
    """Return what to warn of where nobody asked for targets and the engine will not run on this GPU."""
    here = engines_of(backend).here()
    if here is None or not targets or here.name in {target.name for target in targets}:
        return ()
    built_for = ", ".join(target.name for target in targets)
    why = f"{backend.title} builds it for {built_for}"
    return (f"the engine will not run on this machine's {here.called}: {why}; name the --target it is for",)


def _these(targets: Sequence[Target]) -> str:
    return ", ".join(target.called for target in targets) or "any target"


def engines_of(backend: Backend) -> Engines:
    """Return how `backend` builds engines. Raises: BadInput where it builds none."""
    if backend.engines is None:
        builders = " or ".join(b.name for b in registry.every() if b.engines is not None)
        raise BadInput(
            f"{backend.title} builds no engine", hint=f"use --runtime {builders}, or run the file as it is"
        )
    return backend.engines
