"""Options that several commands share: one decorator for each group, one type for each notation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from se_deploy.backends import registry
from se_deploy.options import SEARCH_PLANS

if TYPE_CHECKING:
    from collections.abc import Callable

    from se_deploy.options import Precision

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic from click 8.4 on only

F = TypeVar("F", bound="Callable[..., Any]")

IN_PATH = click.Path(exists=True, path_type=Path)
IN_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUT_DIR = click.Path(file_okay=False, path_type=Path)

_UNITS = {"": 1, "B": 1, "K": 2**10, "KIB": 2**10, "M": 2**20, "MIB": 2**20, "G": 2**30, "GIB": 2**30,
          "KB": 10**3, "MB": 10**6, "GB": 10**9}  # fmt: skip


class Model(ParamType):
    """A network specification, or the file of an artifact, which must then be there."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse a path to a file that is not there, as click.Path does."""
        text = str(value)
        looks_like_a_file = text.endswith((".onnx", ".pt2", *registry.suffixes())) or (
            ":" not in text and "/" in text
        )
        if looks_like_a_file and not Path(text).is_file():
            self.fail(f"File '{text}' does not exist.", param, ctx)
        return text


class Runtime(ParamType):
    """The name of a backend, or `auto`; which there are is asked when it is needed."""

    name = "runtime"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names, as click.Choice does."""
        return f"[{'|'.join(registry.choices())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what no backend is called, as click.Choice does."""
        return str(click.Choice(registry.choices()).convert(value, param, ctx))


class Dims(ParamType):
    """Sizes joined by `x` or `,`: 3x224x224."""

    name = "CxHxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Give the sizes as a tuple of positive integers."""
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"\d+([x,]\d+)*", value) or 0 in (
            dims := [int(d) for d in re.split("[x,]", value)]
        ):
            self.fail(f"'{value}' is no size; write it as 3x224x224", param, ctx)
        return tuple(dims)


class NamedDims(ParamType):
    """An input's name and its sizes: input:1x3x224x224."""

    name = "name:1x3x224x224"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, tuple[int, ...]]:
        """Give (name, sizes)."""
        if isinstance(value, tuple):
            return value
        name, colon, dims = value.rpartition(":")
        if not colon or not name:
            self.fail(f"'{value}' names no input; write it as input:1x3x224x224", param, ctx)
        return name, Dims().convert(dims, param, ctx)


class Batch(ParamType):
    """A batch size, or `dynamic` (None)."""

    name = "N|dynamic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Give the size; None where dynamic."""
        if value is None or value == "dynamic":
            return None
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"'{value}' is neither a positive number nor 'dynamic'", param, ctx)
        return int(value)


class Bytes(ParamType):
    """A number of bytes with a unit: 2GiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value)
        if not found or found[2].upper() not in _UNITS:
            self.fail(f"'{value}' is no size in bytes; write it as 2GiB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


class KeyValue(ParamType):
    """An argument of the network's constructor: num_classes=10."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Give (key, value), the value as Python reads it where it can."""
        import ast

        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"'{value}' is no argument; write it as num_classes=10", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


class Limit(ParamType):
    """A tolerance, for every output or for one: 1e-3 or logits:1e-3."""

    name = "[name:]VALUE"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, float]:
        """Give (output name or "", value)."""
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition(":")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"'{value}' is no number; write it as 1e-3 or output:1e-3", param, ctx)


class Floats(ParamType):
    """Numbers joined by commas: 0.485,0.456,0.406."""

    name = "A,B,C"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Give the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(x) for x in value.split(","))
        except ValueError:
            self.fail(f"'{value}' are no numbers; write them as 0.485,0.456,0.406", param, ctx)


class Names(ParamType):
    """Names joined by commas."""

    name = "A,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Give the names."""
        return value if isinstance(value, tuple) else tuple(x.strip() for x in value.split(",") if x.strip())


def group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Join options into one decorator, listed in --help in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


talk = group(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    click.option("-v", "--verbose", count=True, help="Say more on stderr."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors on stderr."),
    click.option("--strict", is_flag=True, help="Every warning is an error, every verdict a gate."),
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
verify = click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare what is written with what was given; without it the result says so.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
threads = click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets the runtime choose."
)
device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where PyTorch and ONNX Runtime run; an engine runs on its GPU.",
)
gate = click.option(
    "--gate",
    "gates",
    multiple=True,
    type=click.Choice(["parity", "fusion", "fused", "precision", "latency"]),
    help="Exit with 3 where this verdict fails; repeatable.",
)
weights = group(
    click.option("--checkpoint", type=IN_FILE, help="Weights: safetensors or a .pth state dict."),
    click.option(
        "--model-arg", "model_args", type=KeyValue(), multiple=True, help="Passed to the constructor."
    ),
    click.option("--pretrained", is_flag=True, help="Let timm or torchvision load its own weights."),
    click.option("--input-size", type=Dims(), help="What the network is fed, as 3x224x224."),
)
network = group(
    weights,
    click.option("--opset", type=click.IntRange(11, 26), default=20, show_default=True, help="ONNX opset."),
    click.option(
        "--batch", type=Batch(), default="dynamic", show_default=True, help="Frozen batch, or dynamic."
    ),
)
image = group(
    click.option("--mean", type=Floats(), help="Subtracted from pixels in [0, 1], per channel."),
    click.option("--std", type=Floats(), help="What pixels are divided by, per channel."),
    click.option(
        "--resize", type=click.Choice(["shortest", "squash", "longest"]), help="How an image gets its size."
    ),
    click.option("--crop", type=click.FloatRange(0, 1, min_open=True), help="Fraction kept by the crop."),
    click.option("--labels", type=IN_FILE, help="Class names, one a line, or a JSON list."),
)
precision = group(
    click.option(
        "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Of weights and activations."
    ),
    click.option("--fp16", "short", flag_value="fp16", help="Short for --precision fp16."),
    click.option("--int8", "short", flag_value="int8", help="Short for --precision int8."),
)
runtime = click.option(
    "--runtime",
    type=Runtime(),
    default=registry.AUTO,
    show_default=True,
    help="Whose compiler to serve.",
)
target = click.option(
    "--target", "targets", multiple=True, help="Compute capability (sm86) or device (orin-nano); repeatable."
)
opt_shapes = click.option(
    "--opt-shapes", type=NamedDims(), multiple=True, help="Shape of an input to tune, plan and time for."
)
shapes = group(
    click.option("--min-shapes", type=NamedDims(), multiple=True, help="Smallest shape of an input."),
    opt_shapes,
    click.option("--max-shapes", type=NamedDims(), multiple=True, help="Largest shape of an input."),
)
builder = group(
    click.option("--workspace", type=Bytes(), help="Memory the compiler may use, as 2GiB."),
    click.option("--timing-cache", type=OUT_FILE, help="Read and written by full TensorRT."),
)
rewriting = group(
    click.option("--rewrites", type=Names(), help="Apply these exact rewrites only, unmeasured ones too."),
    click.option("--no-rewrites", is_flag=True, help="Leave the canonical form as it is."),
    click.option(
        "--search-plans",
        type=click.IntRange(min=0),
        default=SEARCH_PLANS,
        show_default=True,
        help="Plans that the search for the cheapest form may ask for.",
    ),
    click.option("--replay", type=IN_FILE, help="Apply the choices that an earlier search saved."),
    click.option("--search-seconds", type=click.FloatRange(min=0), help="End the search early."),
)
calibration = group(
    click.option("--calib-data", type=IN_PATH, help="Images, .npy/.npz, MNIST IDX, ... to calibrate on."),
    click.option("--calib-samples", type=click.IntRange(min=1), help="Use at most so many of them."),
    click.option(
        "--calib-method",
        type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
        help="How ranges are clipped; default: the best on samples held back.",
    ),
    click.option("--calib-cache", type=OUT_FILE, help="Ranges in JSON, reused where everything matches."),
    click.option("--exclude-nodes", metavar="REGEX", help="Leave matching nodes out of INT8."),
    click.option("--skip-unreadable", is_flag=True, help="Count unreadable files instead of failing."),
    click.option(
        "--allow-random-calibration", is_flag=True, help="Without data, calibrate on noise; it is said so."
    ),
    click.option("--policy", help="Named placement of Q/DQ nodes; default: the target's."),
    click.option("--min-sqnr", type=float, help="Leave layers in FP16, cheapest first, to reach so many dB."),
    click.option("--max-drop", type=float, help="... until top-1 drops by at most so many points."),
    click.option("--keep", help="Leave so much of the multiply-accumulates in FP16, as 10%."),
)
timing = group(
    click.option(
        "--warmup-ms", type=click.FloatRange(min=0), default=200, show_default=True, help="Untimed."
    ),
    click.option("--duration-s", type=click.FloatRange(min=0), default=3, show_default=True, help="Timed."),
    click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="At least."),
)
tolerance = group(
    click.option("--preset", type=click.Choice(["fp32", "fp16", "int8"]), help="Tolerances by precision."),
    click.option("--atol", type=Limit(), multiple=True, help="Largest absolute error."),
    click.option("--rtol", type=Limit(), multiple=True, help="Largest error over the output's range."),
)


def chosen_precision(precision: Precision | None, short: Precision | None) -> Precision | None:
    """Join --precision with its short forms. Raises: click.UsageError where they contradict."""
    if precision and short and precision != short:
        raise click.UsageError(f"--precision {precision} and --{short} contradict each other")
    return precision or short
