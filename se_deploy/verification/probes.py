"""Inputs that can show a fault: two batch sizes, two sizes of the image, noise and extremes, whole ranges.

Zeros and ones, or a 1x1 image, prove nothing: a sum over one pixel divided by anything looks like a mean.
What a graph accepts is found by trying, since a free size rarely means any size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.schema.input_spec import IMAGENET_MEAN, IMAGENET_STD
from se_deploy.verification.found import found_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.protocols import Array, Arrays, Session, TensorSpec
    from se_deploy.schema.input_spec import InputSpec

Kind = Literal["noise", "extremes", "data"]

_BATCHES = (3, 2)
"""Neither 1, which hides a frozen batch, nor each other; the larger one carries the noise."""
_SIZES = (64, 96, 128, 224, 32, 160, 256, 320, 384, 512, 16, 24, 8, 4, 2)
"""Tried for a free size, in this order: multiples of 32 first, since most networks halve five times."""
_SMALL_SIZES = (16, 24, 32, 48, 64, 8, 4, 2)
"""The same where three sizes or more are free: a volume of 64 x 96 x 128 is too much for a check."""
_FLAT = 2  # free sizes of an image
_BOUNDS = (2, 10, 100, 1000, 30_000)
"""Integers below these are tried as indices, the largest that the graph accepts is used (a vocabulary
has 30,000 words)."""
_TINY, _TINY_BOUND = 4, 100
"""An integer input of so few elements may be a size, and what is made in that size must fit in memory."""
_BLACK = min((0 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
_WHITE = max((1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
"""Extremes of an input that has no spec: black and white by ImageNet's normalization, the most usual one."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One batch that a graph is checked on."""

    kind: Kind
    feeds: Arrays


@dataclass(frozen=True, slots=True)
class _Axis:
    """A free dimension; equal names are one dimension."""

    name: str
    is_batch: bool


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What a graph accepts: a size for each free dimension, and the bound of each integer input."""

    sizes: Mapping[_Axis, int]
    bounds: Mapping[str, int] = field(default_factory=dict)


def choose(
    model: ir.Model,
    session: Session,
    *,
    image: InputSpec | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Arrays | None = None,
    seed: int = 0,
) -> tuple[Probe, ...]:
    """Return batches that `session`, which runs `model`, accepts and that can show a fault.

    `image` says how pixels become the input of its name; `shapes` are sizes by input that a user named, and
    come first; `data` is a batch of the user's own samples, whose integers are used where others are refused.
    Free dimensions take two values each where the graph accepts two, and 1 only where it accepts no other.
    Raises: UnsupportedGraph where no size that was tried is accepted.
    """
    axes = _axes(model, session)
    finds = found_by(model)
    maker = _Maker(session, session.inputs, axes, image, seed, found=finds)
    batches = [axis for axis in _all(axes) if axis.is_batch]
    free = [axis for axis in _all(axes) if not axis.is_batch]
    given = _given(axes, image, shapes or {})
    try:
        accepted = _accepted(maker, batches, free, given)
    except (
        UnsupportedGraph
    ):  # an integer may choose a branch, such as a sample rate: the user's data knows it
        drawn = {
            name: array for name, array in (data or {}).items() if array.dtype.kind in "iu" and array.size
        }
        if not drawn:
            raise
        maker = _Maker(session, session.inputs, axes, image, seed, found=finds, drawn=drawn)
        accepted = _accepted(maker, batches, free, given)
    bounds = _bounds(maker, accepted[0])
    first, *others = [_Chosen(one.sizes, bounds) for one in accepted]
    probes = [Probe("noise", maker.noise(first, 0))]
    other = others[0] if others else first
    if any(other.sizes[axis] != first.sizes[axis] for axis in free):
        probes.append(Probe("noise", maker.noise(other, 1)))
    probes += [Probe("extremes", feeds) for feeds in maker.extremes(other)]
    if data is not None:
        probes.append(Probe("data", data))
    return tuple(probes)


def noise(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]],
    *,
    image: InputSpec | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Return one batch of noise of these shapes, by input; indices are 0 and 1, which any table has."""
    axes = {spec.name: tuple(shapes[spec.name]) for spec in inputs}
    return _Maker(None, tuple(inputs), axes, image, seed).noise(_Chosen({}), 0)


def _axes(model: ir.Model, session: Session) -> dict[str, tuple[_Axis | int, ...]]:
    """Name the free dimensions of each input: by the graph's own names, else one for each place."""
    values = {str(value.name): value for value in model.graph.inputs}
    found: dict[str, tuple[_Axis | int, ...]] = {}
    batch_names: set[str] = set()
    named: dict[str, list[str | int]] = {}
    for spec in session.inputs:
        shape = values[spec.name].shape if spec.name in values else None
        dims: list[str | int] = []
        for i, size in enumerate(spec.dims):
            own = None if shape is None or isinstance(shape[i], int) else getattr(shape[i], "value", None)
            dims.append(size if size is not None else own or ("" if i == 0 else f"{spec.name}[{i}]"))
        named[spec.name] = dims
        if dims and isinstance(dims[0], str):
            batch_names.add(dims[0])
    for name, dims in named.items():
        found[name] = tuple(d if isinstance(d, int) else _Axis(d, d in batch_names) for d in dims)
    return found


def _all(axes: Mapping[str, tuple[_Axis | int, ...]]) -> list[_Axis]:
    return list(dict.fromkeys(a for dims in axes.values() for a in dims if isinstance(a, _Axis)))


def _given(
    axes: Mapping[str, tuple[_Axis | int, ...]],
    image: InputSpec | None,
    shapes: Mapping[str, Sequence[int]],
) -> dict[_Axis, int]:
    """Read the sizes that somebody named: the user by input, else the input spec."""
    found: dict[_Axis, int] = {}
    for name, dims in axes.items():
        sizes: Sequence[int] = shapes.get(name, ())
        if not sizes and image is not None and image.name == name:
            sizes = (1, *image.dims)
        if len(sizes) == len(dims):
            pairs = zip(dims, sizes, strict=True)
            found |= {a: n for a, n in pairs if isinstance(a, _Axis) and not a.is_batch}
    return found


def _accepted(
    maker: _Maker, batches: Sequence[_Axis], free: Sequence[_Axis], given: Mapping[_Axis, int]
) -> list[_Chosen]:
    """Find one choice of sizes that the graph accepts, and a second with another batch and other sizes."""
    found: list[_Chosen] = []
    refusal: BadInput | None = None
    for batch in (*_BATCHES, 1):
        for sizes in _candidates(free, given):
            taken = [one.sizes for one in found]
            if any(sizes[axis] == one[axis] for one in taken for axis in free if axis in sizes):
                continue
            chosen = _Chosen({**dict.fromkeys(batches, batch), **sizes})
            if chosen in found:
                continue
            try:
                maker.run(chosen)
            except BadInput as e:
                refusal = refusal or e
                continue
            found.append(chosen)
            break
        if len(found) == len(_BATCHES):
            break
    if not found:
        reason = f": {refusal.message}" if refusal else ""
        if not free:
            raise UnsupportedGraph(
                f"the graph gives no answers to compare with, on noise of its own sizes{reason}",
                hint="repair what gives none, or turn the check off with --no-verify",
            )
        raise UnsupportedGraph(
            f"the graph accepts none of the sizes that were tried for its free dimensions{reason}",
            hint="name sizes that it accepts with --input-size, or turn the check off with --no-verify",
        )
    if len(found) == 1 and free:  # the second size may do with the same batch, or the second batch with it
        first = found[0].sizes
        for sizes in _candidates(free, {}):
            chosen = _Chosen({**first, **sizes})
            if any(sizes[axis] == first[axis] for axis in free) or not maker.accepts(chosen):
                continue
            found.append(chosen)
            break
    if len(found) == 1:
        found += [c for b in _BATCHES if maker.accepts(c := _with(found[0], batches, b)) and c != found[0]]
    return found[: len(_BATCHES)]


def _with(chosen: _Chosen, batches: Sequence[_Axis], batch: int) -> _Chosen:
    return _Chosen({**chosen.sizes, **dict.fromkeys(batches, batch)})


def _candidates(free: Sequence[_Axis], given: Mapping[_Axis, int]) -> Iterator[dict[_Axis, int]]:
    """Propose sizes: those named, unequal ones, which show a swap of H and W, then equal ones, then 1."""
    if not free:
        yield {}
        return
    ladder = _SIZES if len(free) <= _FLAT else _SMALL_SIZES
    if given:
        for other in (*ladder, 1):
            yield {axis: given.get(axis, other) for axis in free}
            if len(given) == len(free):
                break
    for start in range(len(ladder)):
        yield {axis: ladder[(start + i) % len(ladder)] for i, axis in enumerate(free)}
    for size in (*ladder, 1):
        yield dict.fromkeys(free, size)


def _bounds(maker: _Maker, chosen: _Chosen) -> dict[str, int]:
    """Find the largest bound that the graph accepts, for one integer input after the other."""
    found: dict[str, int] = {}
    for spec in (s for s in maker.inputs if _is_index(s) and s.name not in maker.drawn):

        def accepts(bound: int, name: str = spec.name) -> bool:
            return maker.accepts(_Chosen(chosen.sizes, {**found, name: bound}))

        few = math.prod(maker.shape(spec, chosen)) <= _TINY
        most = min(_TINY_BOUND if few else _BOUNDS[-1], int(np.iinfo(spec.dtype).max))
        found[spec.name] = _bound(accepts, most)
    return found


def _bound(accepts: Callable[[int], bool], most: int) -> int:
    """Climb the ladder while the graph accepts it, then bisect: a table of indices is used to its end."""
    low, high = _BOUNDS[0], most + 1  # low is accepted: sizes were tried with it
    for bound in (b for b in (*_BOUNDS, most) if low < b <= most):
        if not accepts(bound):
            high = bound
            break
        low = bound
    while high - low > 1 and high <= most:
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


def _is_index(spec: TensorSpec) -> bool:
    """Whether an input holds integers that are no pixels; those of one byte take their whole range."""
    return spec.dtype.kind in "iu" and spec.dtype.itemsize > 1


class _Maker:
    """Makes feeds for a session and tries them."""

    def __init__(
        self,
        session: Session | None,
        inputs: Sequence[TensorSpec],
        axes: Mapping[str, tuple[_Axis | int, ...]],
        image: InputSpec | None,
        seed: int,
        *,
        found: Collection[str] = (),
        drawn: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        self.drawn = drawn  # what integer inputs may hold, by name; the rest may hold anything
        self.session, self.inputs, self.axes = session, inputs, axes
        self.image, self.seed, self.found = image, seed, found

    def shape(self, spec: TensorSpec, chosen: _Chosen) -> tuple[int, ...]:
        return tuple(a if isinstance(a, int) else chosen.sizes[a] for a in self.axes[spec.name])

    def run(self, chosen: _Chosen) -> None:
        """Run noise of these sizes. Raises: BadInput where the graph refuses it or answers with nothing."""
        if self.session is None:
            raise ValueError("there is no session to try the sizes on")
        for name, array in self.session.run(self.noise(chosen, 0)).items():
            if array.size == 0 and name in self.found:
                continue  # a detector may find nothing in noise
            if array.size == 0 or (array.dtype.kind == "f" and not np.isfinite(array).any()):
                raise BadInput(f"output '{name}' is empty or not finite", hint="name a larger --input-size")

    def accepts(self, chosen: _Chosen) -> bool:
        try:
            self.run(chosen)
        except BadInput:
            return False
        return True

    def noise(self, chosen: _Chosen, number: int) -> dict[str, Array]:
        """Draw what each input may hold; `number` tells the probes of one graph apart."""
        rng = np.random.default_rng([self.seed, number])
        return {spec.name: self._noise(spec, chosen, rng) for spec in self.inputs}

    def _noise(self, spec: TensorSpec, chosen: _Chosen, rng: np.random.Generator) -> Array:
        shape = self.shape(spec, chosen)
        values: Array
        if spec.name in self.drawn:
            values = np.asarray(rng.choice(self.drawn[spec.name].reshape(-1), shape))
        elif spec.dtype.kind == "b":
            values = rng.integers(0, 2, shape)
        elif spec.dtype.kind in "iu":
            low, high = self._integers(spec, chosen)
            values = np.asarray(rng.integers(low, high, shape, endpoint=True))
            values.reshape(-1)[-1:] = high  # the bound that was accepted is met
        elif (limits := self._limits(spec, len(shape))) is None:
            values = np.asarray(rng.standard_normal(shape))
        else:
            black, white = limits
            values = black + rng.random(shape) * (white - black)
        return values.astype(spec.dtype)

    def extremes(self, chosen: _Chosen) -> Iterator[dict[str, Array]]:
        """Make all black and all white: as rows of one batch, or two batches where it holds one row."""
        noise = self.noise(chosen, 2)
        rows = [len(array) for array in noise.values() if array.ndim]
        single = not rows or min(rows) == 1
        for start in (0, 1) if single else (0,):
            yield {spec.name: self._rows(spec, chosen, noise[spec.name], start) for spec in self.inputs}

    def _rows(self, spec: TensorSpec, chosen: _Chosen, noise: Array, start: int) -> Array:
        low, high = self._ends(spec, chosen, noise.ndim)
        if not noise.ndim:
            return np.asarray((low, high)[start], dtype=spec.dtype).reshape(())
        ends = itertools.islice(itertools.cycle((low, high)), start, start + len(noise))
        return np.stack([np.broadcast_to(end, noise.shape)[0] for end in ends]).astype(spec.dtype)

    def _ends(self, spec: TensorSpec, chosen: _Chosen, rank: int) -> tuple[Array | float, Array | float]:
        if spec.name in self.drawn:
            return self.drawn[spec.name].min(), self.drawn[spec.name].max()
        if spec.dtype.kind == "b":
            return 0, 1
        if spec.dtype.kind in "iu":
            return self._integers(spec, chosen)
        return self._limits(spec, rank) or (_BLACK, _WHITE)

    def _integers(self, spec: TensorSpec, chosen: _Chosen) -> tuple[int, int]:
        if _is_index(spec):
            return 0, chosen.bounds.get(spec.name, _BOUNDS[0]) - 1
        return np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max

    def _limits(self, spec: TensorSpec, rank: int) -> tuple[Array, Array] | None:
        """Return black and white by the input spec, as they broadcast; None where there is none."""
        image = self.image
        if image is None or image.name != spec.name or rank != 4:  # noqa: PLR2004 - (N, C, H, W)
            return None
        shape = (1, 1, 1, image.channels) if image.layout == "NHWC" else (1, image.channels, 1, 1)
        mean, std = (np.array(values).reshape(shape) for values in (image.mean, image.std))
        return (0 - mean) / std, (1 - mean) / std
