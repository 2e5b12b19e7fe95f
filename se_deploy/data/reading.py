"""Look at a path, find out what kind of data it is, and choose the samples."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from se_deploy import files, npy
from se_deploy.data import (
    array_folder,
    arrays,
    cifar,
    clips,
    idx,
    images,
    labels,
    plausibility,
    waves,
    webdataset,
)
from se_deploy.data.images import ImageSource, SourceImage
from se_deploy.data.samples import Samples
from se_deploy.errors import BadData, counted
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from se_deploy.data.samples import Hashes, Source

PreparedKind = Literal["arrays", "folder of arrays", "recordings", "clips"]
"""Data that no input spec has to prepare."""
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm",
})  # fmt: skip
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst"})
KINDS = (
    "a folder of images (class folders too), a text file of paths, .npy, .npz, a folder of .npy files or of "
    "WAV files, folders of frames, MNIST IDX (plain or gzip), CIFAR-10 or CIFAR-100 (binary), or WebDataset "
    ".tar"
)
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


def read(
    path: Path,
    inputs: Sequence[InputSpec | TensorSpec],
    *,
    image: InputSpec | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    seed: int = 0,
) -> Samples:
    """Open calibration or evaluation data, choose at most `limit` samples and look at each of them.

    Images need one InputSpec, which says how they are prepared; arrays and recordings are fed as they are,
    frames of a clip as pixels in [0, 1]. A limit picks
    one sample out of each of `limit` equal stretches of the sorted data, so that every class folder keeps
    its share: the first of each with seed 0, a random one otherwise. Arrays that do not look like what the
    network's input spec (`image`, or the one among `inputs`) makes of images are warned of.

    Raises: BadData where nothing is found, a sample cannot be read or does not fit the network.
    """
    if not path.exists():
        raise BadData(f"'{path}' does not exist", hint=f"name {KINDS}")
    kind = _prepared_kind(path, [_tensor(spec) for spec in inputs])
    if kind in {"folder of arrays", "recordings", "clips"}:
        return _read_files(kind, path, [_tensor(spec) for spec in inputs], limit, seed)
    if kind == "arrays":
        samples = _read_arrays(path, inputs, limit, seed)
        wanted = image or next((spec for spec in inputs if isinstance(spec, InputSpec)), None)
        doubts = _array_doubts(samples, wanted) if wanted else ()
        return dataclasses.replace(samples, warnings=(*samples.warnings, *doubts))
    spec = _image_spec(path, inputs)
    found = _some_images(path, spec, limit, seed)
    looked = images.inspect(found.images, spec, skip_unreadable=skip_unreadable)
    kept = tuple(found.images[p] for p in looked.readable)
    known = [each.label for each in kept if each.label is not None]
    unlabelled = found.unlabelled
    if known and len(known) < len(kept):
        without = len(kept) - len(known)
        unlabelled = f"{without} of {len(kept)} images {'has' if without == 1 else 'have'} no label"
    warnings = plausibility.spec_doubts(spec)
    if looked.skipped:
        shown = ", ".join(looked.skipped[:3]) + (", ..." if len(looked.skipped) > 3 else "")  # noqa: PLR2004 - enough names to find the cause
        warnings += (
            f"{len(looked.skipped)} of {counted(len(found.images), 'image')} unreadable, left out: {shown}",
        )
    return Samples(
        source=ImageSource(kept, spec),
        chosen=tuple(range(len(kept))),
        labels=np.array(known, np.int64) if len(known) == len(kept) else None,
        sha256=looked.hashes.whole,
        each=looked.hashes.each,
        warnings=warnings,
        counted=found.counted,
        unlabelled=unlabelled,
    )


def require(path: Path, spec: InputSpec) -> None:
    """Look, before any long step, whether there is anything to feed a network of images. Raises: BadData."""
    if not path.exists():
        raise BadData(f"'{path}' does not exist", hint=f"name {KINDS}")
    if _prepared_kind(path, [_tensor(spec)]) is None:
        _some_images(path, spec, 1, 0)


def is_prepared(path: Path, inputs: Sequence[TensorSpec]) -> bool:
    """Whether data needs no input spec: arrays, recordings, and frames for a network of clips."""
    return _prepared_kind(path, inputs) is not None


def how_to_describe(inputs: Sequence[TensorSpec]) -> str:
    """Return the hint for a file that does not say how an image becomes its input."""
    if len(inputs) == 1 and inputs[0].dtype == np.uint8:  # frames: mean and std would be refused
        return "pass --input-size CxHxW, and --layout where the graph does not show its own"
    return "pass --input-size, --mean and --std, or give .npy/.npz arrays"


def pick(count: int, limit: int | None, seed: int) -> list[int]:
    """Choose at most `limit` of `count` numbers, one of each of `limit` equal stretches, ascending."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise BadData(f"{limit} samples were asked for", hint="ask for at least one")
    inside = np.zeros(limit) if seed == 0 else np.random.default_rng(seed).random(limit)
    edges = np.arange(limit + 1) * count // limit
    return [int(n) for n in edges[:-1] + np.floor(inside * (edges[1:] - edges[:-1]))]


def _prepared_kind(path: Path, inputs: Sequence[TensorSpec]) -> PreparedKind | None:
    if path.suffix in ARRAY_SUFFIXES:
        return "arrays"
    if path.suffix.lower() == waves.SUFFIX:
        return "recordings"
    if not path.is_dir():
        return None
    found = {p.suffix.lower() for p in path.rglob("*") if not p.name.startswith(".")}
    if found & IMAGE_SUFFIXES:  # arrays beside images are their labels or the like
        return "clips" if len(inputs) == 1 and len(inputs[0].dims) == clips.AXES else None
    if {".npy", waves.SUFFIX} <= found:
        raise BadData(f"'{path}' holds both .npy and WAV files", hint="give a folder with one of them")
    if ".npy" in found:
        return "folder of arrays"
    return "recordings" if waves.SUFFIX in found else None


def _read_files(
    kind: PreparedKind, path: Path, specs: Sequence[TensorSpec], limit: int | None, seed: int
) -> Samples:
    """Open data of which every file, or every folder of frames, is one sample."""
    if kind == "folder of arrays":
        found = array_folder.find(path, specs)
        opened = array_folder.open_samples([found[n] for n in pick(len(found), limit, seed)], specs)
        return _of_files(
            array_folder.FolderSource(opened, tuple(specs)),
            array_folder.digest(opened, specs),
            [array_folder.shapes(one, specs) for one in opened],
        )
    if len(specs) != 1:
        raise BadData(
            f"'{path}' holds {kind}, the network has {counted(len(specs), 'input')}",
            hint="give an .npz with one array per input, by name, or a folder of .npy files for each",
        )
    if kind == "clips":
        every = clips.find(path, specs[0], IMAGE_SUFFIXES)
        chosen = tuple(every[n] for n in pick(len(every), limit, seed))
        shapes = [clips.shape_of(clip, specs[0]) for clip in chosen]
        source = clips.ClipSource(chosen, specs[0])
        return _of_files(source, clips.digest(chosen), shapes, clips.warnings(specs[0]))
    sounds = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() == ".wav")
    root = path.parent if path.is_file() else path
    numbers = pick(len(sounds), limit, seed)
    heads = tuple(waves.open_wave(sounds[n], sounds[n].relative_to(root).as_posix()) for n in numbers)
    waves.check(heads, specs[0])
    return _of_files(waves.WaveSource(heads, specs[0]), waves.digest(heads), [one.frames for one in heads])


def _of_files(
    source: Source, hashes: Hashes, shapes: Sequence[object], warnings: tuple[str, ...] = ()
) -> Samples:
    if not shapes:
        raise BadData("the folder holds no sample", hint=f"name {KINDS}")
    alike = len(set(shapes)) == 1
    numbers = tuple(range(len(shapes)))
    varied = None if alike else tuple(shapes)
    return Samples(source, numbers, None, hashes.whole, warnings, varied, each=hashes.each)


def _image_spec(path: Path, inputs: Sequence[InputSpec | TensorSpec]) -> InputSpec:
    if len(inputs) != 1:
        raise BadData(
            f"'{path}' holds images, the network has {counted(len(inputs), 'input')}",
            hint="give an .npz with one array per input, by name",
        )
    if not isinstance(inputs[0], InputSpec):
        raise BadData(
            f"how images become the input '{inputs[0].name}' is unknown: the file carries no input spec",
            hint=how_to_describe([_tensor(spec) for spec in inputs]),
        )
    images.check_size(inputs[0])
    return inputs[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """The images that were chosen, and what is known of their labels as `Samples` has it."""

    images: Sequence[SourceImage]
    counted: int | None = None
    unlabelled: str = ""


def _some_images(path: Path, spec: InputSpec, limit: int | None, seed: int) -> _Found:
    """Choose the images that `path` names. Raises: BadData where there are none."""
    is_plain = path.is_dir() and not cifar.files(path) and not any(path.glob("*.tar"))
    found = _folder(path, spec, limit, seed) if is_plain else _Found(_images(path, spec, limit, seed))
    if not found.images:
        raise BadData(f"'{path}' holds no images", hint=f"name {KINDS}")
    return found


def _images(path: Path, spec: InputSpec, limit: int | None, seed: int) -> list[SourceImage]:
    """Choose the images that `path` names; they are opened later."""
    if batches := cifar.files(path):
        counts = [len(cifar.read(batch).labels) for batch in batches]
        return list(cifar.images(batches, pick(sum(counts), limit, seed), counts))
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
    if shards:
        found = webdataset.images(shards, IMAGE_SUFFIXES)
        return [found[n] for n in pick(len(found), limit, seed)]
    if idx.is_idx(path):
        count, height, width, *depth = idx.shape(path) if len(idx.shape(path)) > 1 else (0, 0, 0)
        if not count:
            raise BadData(f"'{path}' holds labels or nothing, not images", hint="name the images file")
        known = idx.labels_beside(path, count)
        size = height * width * (depth[0] if depth else 1)
        idx.check_held(path, count if limit is None else min(count, limit), size)
        pixels = idx.pixels(path, pick(count, limit, seed))
        return [
            SourceImage(
                f"{path.name}[{n}]",
                lambda data=data: data,  # type: ignore[misc]  # the default binds this image's bytes
                None if known is None else int(known[n]),
                (height, width, depth[0] if depth else 1),
            )
            for n, data in pixels.items()
        ]
    if path.suffix.lower() in LIST_SUFFIXES:
        return _listed(path, spec, limit, seed)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [_file(path, path.name, None)]
    raise BadData(f"'{path}' is no data of a known kind", hint=f"name {KINDS}")


def _folder(folder: Path, spec: InputSpec, limit: int | None, seed: int) -> _Found:
    """Choose images below `folder`; the first level of folders names their classes."""
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )
    parts = [p.relative_to(folder).parts for p in found]
    classes = sorted({part[0] for part in parts if len(part) > 1})
    numbered = labels.numbering(classes, spec.labels) if len(classes) > 1 else labels.Numbering()
    stray = next((part[0] for part in parts if len(part) == 1), None)
    if stray is not None and len(classes) > 1:
        numbered = labels.Numbering(reason=f"'{stray}' lies beside the class folders")
    chosen = [
        _file(found[n], "/".join(parts[n]), numbered.index.get(parts[n][0]))
        for n in pick(len(found), limit, seed)
    ]
    return _Found(chosen, numbered.counted, numbered.reason)


def _listed(path: Path, spec: InputSpec, limit: int | None, seed: int) -> list[SourceImage]:
    """Choose images of a text file: one path a line, relative to it, and perhaps a label behind it."""
    lines = [line.strip() for line in files.read_text(path, error=BadData).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    found = []
    for n in pick(len(lines), limit, seed):
        name, label = _path_and_label(path, lines[n], spec)
        if not files.is_regular(path.parent / name):
            raise BadData(
                f"'{name}', line {n + 1} of '{path}', is no file", hint="paths are relative to the list"
            )
        found.append(_file(path.parent / name, name, label))
    return found


def _path_and_label(path: Path, line: str, spec: InputSpec) -> tuple[str, int | None]:
    if files.is_regular(path.parent / line):
        return line, None
    for separator in ("\t", ",", None):  # None: any blank
        name, *label = line.rsplit(separator, 1)
        if not label:
            continue
        if labels.is_number(label[0].strip()):
            return name.strip(), int(label[0])
        if spec.labels.count(label[0].strip()) == 1:
            return name.strip(), spec.labels.index(label[0].strip())
    return line, None


def _file(path: Path, name: str, label: int | None) -> SourceImage:
    return SourceImage(name, functools.partial(files.read_bytes, path, error=BadData), label)


def _read_arrays(
    path: Path, inputs: Sequence[InputSpec | TensorSpec], limit: int | None, seed: int
) -> Samples:
    """Open .npy or .npz: one array per input by name; a lone array needs no name."""
    specs = [_tensor(spec) for spec in inputs]
    found = {"": npy.open_npy(path)} if path.suffix == ".npy" else npy.open_npz(path)
    names = [spec.name for spec in specs]
    key = next((k for k in arrays.LABEL_KEYS if k in found and k not in names), None)
    given = found.pop(key) if key is not None else None
    if len(found) == len(names) == 1:
        found = {names[0]: next(iter(found.values()))}
    if missing := [name for name in names if name not in found]:
        raise BadData(
            f"'{path}' has no array for the input '{missing[0]}'; it has {', '.join(found) or 'none'}",
            hint="save one array per input under the input's name: numpy.savez(path, name=array)",
        )
    own = {name: found[name] for name in names}
    whole = arrays.fed_whole(own, specs)
    source = arrays.ArraySource(own, {s.name: s.dtype for s in specs}, whole)
    warnings = arrays.check(source, specs)
    count = source.arrays[names[0]].shape[0]
    chosen = pick(count, limit, seed)
    hashes = arrays.digest(source, chosen)
    if given is not None and given.shape != (count,):
        raise BadData(f"'{path}' holds labels of shape {given.shape} for {count} samples", hint="one each")
    known = None if given is None else labels.whole(given.rows(chosen))
    return Samples(
        source=source,
        chosen=tuple(chosen),
        labels=known,
        sha256=hashes.whole,
        each=hashes.each,
        warnings=warnings,
        shapes=tuple(chosen) if whole else None,  # no two go into one call
        unlabelled=f"'{key}' holds no whole numbers" if known is None and given is not None else "",
    )


def _array_doubts(samples: Samples, spec: InputSpec) -> tuple[str, ...]:
    """Look at a few samples, one at a time; a spec of another input or another size says nothing."""
    few = samples.take(pick(samples.count, plausibility.LOOKED_AT, seed=0))
    first = next(few.batches(1))
    name = spec.name if spec.name in first or len(first) > 1 else next(iter(first))
    if name not in first or first[name].shape[1:] != spec.dims:
        return ()
    return plausibility.array_doubts((batch[name] for batch in few.batches(1)), spec)


def _tensor(spec: InputSpec | TensorSpec) -> TensorSpec:
    if isinstance(spec, TensorSpec):
        return spec
    return TensorSpec(spec.name, np.dtype(spec.element), (None, *spec.dims))
