"""How much of an INT8 figure is the luck of rounding: the same samples, every scale moved by a hair.

Scales a thousandth larger or smaller clip and round nearly the same, but other values fall on other levels.
What such files differ by is no effect of the samples: differences that small between two numbers of samples,
or between two versions of a rule, say nothing.

    python scripts/rounding_luck.py out/mobilenetv3__digits --samples 64     # a folder of bench_ptq.py -o out
    python scripts/rounding_luck.py out/se_resnet_20__digits --form portable --samples 1024 --subsets

With `--subsets` each file is calibrated on another draw as well: their mean is what a number of samples
gives, without the luck that draws share. `--told` bounds the number of samples that tails are known from, in
place of the package's own bound.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import bench_ptq
import click
import numpy as np

from se_deploy.calibration import statistics
from se_deploy.quantization import qparams
from se_deploy.quantization.qdq import LOWEST_LEVEL
from se_deploy.quantization.scales import representable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.calibration import Method
    from se_deploy.quantization.qparams import Choice, Subject

HAIR = 1e-3  # of a scale, its standard deviation
MADE = 8  # files
ON_A_LEVEL = 1e-4  # of a step


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--samples", type=int, default=64, show_default=True, help="Calibration samples.")
@click.option("--form", default="tensorrt", show_default=True, help="Form to make.")
@click.option("--subsets", is_flag=True, help="Calibrate each file on another draw of the samples.")
@click.option("--told", type=click.IntRange(1), help="Samples that tails are known from, at most.")
@click.option("--times", type=click.IntRange(2), default=MADE, show_default=True, help="Files to make.")
def main(folder: Path, *, samples: int, form: str, times: int, subsets: bool, told: int | None) -> None:
    """Print the SQNR of each file on the folder's test data, and the spread."""
    found = []
    chosen = qparams.choose
    if told:
        statistics.MOST_TOLD = told
    try:
        for seed in range(times):
            qparams.choose = moved(chosen, seed)
            with tempfile.TemporaryDirectory() as name:
                output = Path(name) / "out.onnx"
                bench_ptq.quantize_ours(folder, form, samples, seed if subsets else 0, output)
                found.append(bench_ptq.compare(folder, output)["sqnr_db"])
            click.echo(f"{found[-1]:.2f} dB")
    finally:
        qparams.choose = chosen
    low, high = min(found), max(found)
    click.echo(
        f"{folder.name}, {form}, {samples} samples, {times} files: {np.mean(found):.1f} dB on average, "
        f"standard deviation {np.std(found, ddof=1):.2f} dB, of the mean "
        f"{np.std(found, ddof=1) / math.sqrt(times):.2f} dB, {low:.1f} to {high:.1f} dB"
    )


def moved(
    choose: Callable[[Subject, Sequence[Method]], dict[Method, Choice]], seed: int
) -> Callable[[Subject, Sequence[Method]], dict[Method, Choice]]:
    """Return `choose` with each scale moved by about a `HAIR` of it."""
    random = np.random.default_rng(seed)

    def other(subject: Subject, methods: Sequence[Method]) -> dict[Method, Choice]:
        found = choose(subject, methods)
        for method, one in found.items():
            before = one.params
            scale = before.scale * (1 + HAIR * random.standard_normal(1))
            params = dataclasses.replace(before, scale=float(representable(scale)[0]))
            if before.offset is not None:
                factor = 1.0 if before.equalization is None else before.equalization
                step, change = factor * before.scale, factor * (params.scale - before.scale)
                # A value that is taken over and over stays on its level: 0, or else the lowest one.
                zero = np.round(before.offset / step)
                level = np.where(np.abs(zero - before.offset / step) < ON_A_LEVEL, -zero, LOWEST_LEVEL)
                params = dataclasses.replace(
                    params, offset=(before.offset - level * change).astype(np.float32)
                )
            found[method] = dataclasses.replace(one, params=params)
        return found

    return other


if __name__ == "__main__":
    main()
