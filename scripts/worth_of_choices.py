"""What each choice that INT8 takes by default is worth: the same samples, with it and without it.

GPTQ, bias correction, offsets and equalization are taken unless samples held back are surely against them, so
each must be worth it on data that nothing saw: on networks, numbers of samples and draws alike.

    python scripts/worth_of_choices.py out/*/ --samples 64 --repeat 8     # folders of bench_ptq.py -o out
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import bench_ptq
import click
import numpy as np

CHOICES = ("gptq", "bias_correction", "offset_folding", "channel_equalization")  # flags of QuantizeOptions


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--samples", default="16,64,256", show_default=True, help="Calibration samples.")
@click.option("--forms", default=",".join(bench_ptq.FORMS), show_default=True, help="Forms to make.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Draws of the samples.")
@click.option("--only", default=",".join(CHOICES), show_default=True, help="Choices to leave out in turn.")
def main(folders: tuple[Path, ...], *, samples: str, forms: str, repeat: int, only: str) -> None:
    """Print what is gained by each choice on the folders' test data, in dB, over the draws."""
    choices = only.split(",")
    click.echo(f"| network | form | samples | all | {' | '.join(choices)} |")
    click.echo("|---" * (4 + len(choices)) + "|")
    for folder in folders:
        for form in forms.split(","):
            for count in map(int, samples.split(",")):
                gains: dict[str, list[float]] = {choice: [] for choice in choices}
                found = []
                for seed in range(repeat):
                    found.append(sqnr_db(folder, form, count, seed))
                    for choice, gained in gains.items():
                        gained.append(found[-1] - sqnr_db(folder, form, count, seed, without=choice))
                cells = [f"{np.mean(found):.1f} dB", *map(spread, gains.values())]
                click.echo(f"| {folder.name} | {form} | {count} | {' | '.join(cells)} |")


def sqnr_db(folder: Path, form: str, samples: int, seed: int, *, without: str = "") -> float:
    """Return the SQNR on the test data of a file made with every choice, or with all but one."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "out.onnx"
        bench_ptq.quantize_ours(folder, form, samples, seed, output, **({without: False} if without else {}))
        return float(bench_ptq.compare(folder, output)["sqnr_db"])


def spread(gained: list[float]) -> str:
    """Lay out a mean and its standard error."""
    error = f" ({np.std(gained, ddof=1) / math.sqrt(len(gained)):.1f})" if len(gained) > 1 else ""
    return f"{np.mean(gained):+.1f}{error}"


if __name__ == "__main__":
    main()
