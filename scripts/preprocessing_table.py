"""Hold the input spec of every network of timm and torchvision against the zoos' own transforms.

    python scripts/preprocessing_table.py [--output docs/preprocessing.md]

Three sizes of a photograph go through the zoo's transform and through the spec; the largest difference is
counted in grey levels (1/255, over the channel's std). No network is built and no weights are loaded: what
decides is the configuration, so each different one is measured once. Exits with 1 above one grey level.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import importlib.util
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
from timm.data import create_transform, resolve_data_config
from torchvision import models as torchvision_zoo

from se_deploy import data
from se_deploy.data import preprocessing
from se_deploy.frontend import public_zoos

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt
    from PIL import Image

    from se_deploy.schema.input_spec import InputSpec

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.0  # grey levels
START, END = "<!-- table: start -->", "<!-- table: end -->"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a zoo, and how it prepares images for them."""

    name: str
    spec: InputSpec | None  # None: the zoo has no transform for single images
    transform: Any  # callable on a Pillow image, gives a (C, H, W) tensor
    default: bool  # what the network's name alone means


@dataclass(slots=True)
class Row:
    """All weights that are prepared by one rule."""

    zoo: str
    rule: str
    networks: int = 0
    weights: int = 0
    configurations: int = 0
    worst: float = 0.0  # grey levels
    names: list[str] = field(default_factory=list)


def torchvision_weights() -> Iterator[Weights]:
    """Return all weights of every network of torchvision."""
    for name in torchvision_zoo.list_models():
        choices = torchvision_zoo.get_model_weights(name)
        for weights in choices:
            transform = weights.transforms()
            spec = public_zoos.torchvision_spec(transform)
            yield Weights(f"{name}.{weights.name}", spec, transform, weights is choices.DEFAULT)


def timm_weights() -> Iterator[Weights]:
    """Return the configuration of every network of timm and of all its published weights."""
    names = timm.list_models()
    tagged = [name for name in timm.list_models(pretrained=True, include_tags=True) if name not in names]
    for name in (*names, *tagged):
        cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
        config = resolve_data_config(pretrained_cfg=cfg.to_dict())
        transform = functools.partial(create_transform, **config, is_training=False)
        yield Weights(name, public_zoos.timm_spec(config), transform, name in names)


def difference(weights: Weights, images: Iterable[Image.Image]) -> float:
    """Return the largest difference over the images, in grey levels."""
    spec = weights.spec
    if spec is None:
        raise ValueError(f"{weights.name} has no transform for images")
    transform = weights.transform
    if isinstance(transform, functools.partial):
        transform = transform()  # timm's takes longer to build than to describe
    levels = 255 * np.array(spec.std, np.float64).reshape(-1, 1, 1)
    return max(
        float((np.abs(data.preprocess(image, spec) - _centre(transform(image).numpy(), spec)) * levels).max())
        for image in images
    )


def _centre(array: npt.NDArray[np.float32], spec: InputSpec) -> npt.NDArray[np.float32]:
    """Return the window that a graph of one size takes of a segmentation network's image."""
    top, left = (round((have - want) / 2) for have, want in zip(array.shape[1:], spec.shape[1:], strict=True))
    return array[:, top : top + spec.height, left : left + spec.width]


def rule(spec: InputSpec) -> str:
    """Return in words what is done, without the sizes."""
    to, size = preprocessing.target_size(spec), (spec.height, spec.width)
    if spec.resize == "longest":
        words = "longer side, padded with the mean"
    elif spec.resize == "squash":
        words = "both sides, aspect not kept" + (", cropped" if to > size else "")
    else:
        rest = "black frame" if to < size else "both cropped" if to > size else "the longer cropped"
        words = f"shorter side, {rest}"
    return f"{words}; {spec.interpolation}"


def rows(zoo: str, every: Iterable[Weights], images: list[Image.Image]) -> list[Row]:
    """Measure each configuration once; one row for each rule, the most used first."""
    made: dict[str, Row] = {}
    measured: dict[InputSpec, float] = {}
    for weights in every:
        name = rule(weights.spec) if weights.spec else f"none: {type(weights.transform).__name__}"
        row = made.setdefault(name, Row(zoo, name))
        row.weights += 1
        if weights.default:
            row.networks += 1
            row.names.append(weights.name.partition(".")[0])
        if weights.spec is not None and weights.spec not in measured:
            measured[weights.spec] = difference(weights, images)
            row.configurations += 1
            row.worst = max(row.worst, measured[weights.spec])
    return sorted(made.values(), key=lambda row: -row.weights)


def photographs() -> list[Image.Image]:
    """Return the photographs that the tests use."""
    path = ROOT / "tests" / "photographs.py"
    spec = importlib.util.spec_from_file_location("photographs", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.photographs().values())


def table() -> list[Row]:
    """Measure both zoos."""
    images = photographs()
    return [
        *rows("torchvision", torchvision_weights(), images),
        *rows("timm", timm_weights(), images),
    ]


def markdown(made: list[Row]) -> str:
    """Return what stands between the marks of the page."""
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("se-deploy", "timm", "torchvision", "torch", "pillow", "numpy")
    )
    measured = [row for row in made if row.configurations]
    date, machine = dt.datetime.now(dt.timezone.utc).date(), f"{platform.system()} {platform.machine()}"
    columns = ("zoo", "resized to the target by", "networks", "weights", "configurations")
    lines = [
        f"`python scripts/preprocessing_table.py`, {date}; {versions}; {machine}.",
        "",
        f"| {' | '.join(columns)} | largest difference in grey levels |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in measured:
        counts = f"{row.networks} | {row.weights} | {row.configurations}"
        lines.append(f"| {row.zoo} | {row.rule} | {counts} | {row.worst:.2g} |")
    for zoo in dict.fromkeys(row.zoo for row in measured):
        own = [row for row in measured if row.zoo == zoo]
        sums = (sum(getattr(row, what) for row in own) for what in ("networks", "weights", "configurations"))
        lines.append(f"| {zoo} | all | {' | '.join(map(str, sums))} | {max(row.worst for row in own):.2g} |")
    lines += ["", "Networks whose zoo has no transform that makes their input of a single image:", ""]
    lines += [
        f"- {row.zoo}, {row.rule.removeprefix('none: ')}: {', '.join(f'`{name}`' for name in row.names)}"
        for row in made
        if not row.configurations
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print or write the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a page with marks between which the table is written")
    output = parser.parse_args().output
    made = table()
    text = markdown(made)
    if output is None:
        print(text)
    else:
        head, _, rest = output.read_text("utf-8").partition(START)
        _, _, tail = rest.partition(END)
        output.write_text(f"{head}{START}\n{text}{END}{tail}", "utf-8")
    return int(any(row.worst > LIMIT for row in made))


if __name__ == "__main__":
    sys.exit(main())
