"""Parity in users' own CI: `assert_parity` as a function, and as a fixture that pytest finds by itself.

Imported with every pytest run of an environment that has this package, so nothing heavy is imported here
before a test asks for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeGuard

    from se_deploy.protocols import Array, Session
    from se_deploy.schema.common import OutputKind

    Artifact = str | Path | Session | Callable[..., object]
    """A path, a session, or a torch module of one input and one output, which is called."""


def assert_parity(
    reference: Artifact,
    candidate: Artifact,
    *,
    data: Array | Mapping[str, Array] | str | Path,
    preset: str = "fp32",
    atol: float | None = None,
    rtol: float | None = None,
    min_cosine: float | None = None,
    min_top1: float | None = None,
    min_iou: float | None = None,
    kinds: Mapping[str, OutputKind] | None = None,
) -> None:
    """Fail the test, with what differs and by how much, unless the candidate's outputs pass the tolerance.

    `reference` and `candidate`: paths (ONNX file, engine, network specification), torch modules of one input
    and one output, or sessions. `data`: an array whose first axis counts samples, a dict of arrays by input
    name, the reference's or the candidate's, or a path. Arrays of several lengths are one batch.
    `kinds`: what an output is, by its name, where the guess is wrong ("mask", "boxes", ...).
    """
    from se_deploy import comparison  # noqa: PLC0415

    limits = comparison.tolerance(
        preset, atol=atol, rtol=rtol, min_cosine=min_cosine, min_top1=min_top1, min_iou=min_iou
    )
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(_session(reference))
        other = stack.enter_context(_session(candidate))
        parity = comparison.compare(one, other, _batches(data, one, other), kinds=kinds)
    failures = [text for output in parity.outputs for text in limits.failures(output)]
    if failures:
        pytest.fail(f"no parity under preset '{preset}':\n  " + "\n  ".join(failures), pytrace=False)


@pytest.fixture(name="assert_parity")
def _assert_parity() -> Callable[..., None]:
    """Return `assert_parity` to a test that names it as an argument."""
    return assert_parity


@contextlib.contextmanager
def _session(thing: Artifact) -> Iterator[Session]:
    if isinstance(thing, (str, Path)):
        from se_deploy.commands import artifacts  # noqa: PLC0415

        with artifacts.opened(thing, exact=True, stand_in=True) as one:
            yield one.session
    elif _is_session(thing):
        yield thing
    else:
        from se_deploy.backends import registry  # noqa: PLC0415

        yield registry.network_session(cast("Any", thing))  # a torch module; torch is not imported here


def _is_session(thing: Artifact) -> TypeGuard[Session]:
    return hasattr(thing, "run") and hasattr(thing, "outputs")


def _batches(
    data: Array | Mapping[str, Array] | str | Path, one: Session, other: Session
) -> Iterator[Mapping[str, Array]]:
    from se_deploy.commands import artifacts  # noqa: PLC0415
    from se_deploy.comparison.parity import paired  # noqa: PLC0415

    size = min(artifacts.batch_size(session, 16) for session in (one, other))
    if isinstance(data, (str, Path)):
        yield from artifacts.read_data(Path(data), one, None).batches(size)
        return
    import numpy as np  # noqa: PLC0415

    ours = [spec.name for spec in one.inputs]
    theirs = [spec.name for spec in other.inputs]
    given = data if isinstance(data, Mapping) else {ours[0]: data}
    feeds = {name: np.asarray(value) for name, value in given.items()}
    if set(feeds) != set(ours) and set(feeds) == set(theirs):  # a torch module calls its input "input"
        named = {their: our for our, their in paired(ours, theirs, "inputs").items()}
        feeds = {named[name]: array for name, array in feeds.items()}
    counts = {len(array) for array in feeds.values() if array.ndim}
    if len(counts) != 1:  # a frame and a state with it: there is no axis of samples to cut along
        yield feeds
        return
    (count,) = counts
    for start in range(0, count, size):
        yield {name: a[start : start + size] if a.ndim else a for name, a in feeds.items()}
