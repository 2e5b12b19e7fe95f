"""What a user may ask of a step, in groups that several steps share; every field has a default that works."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from se_deploy.errors import BadInput
from se_deploy.schema import input_spec
from se_deploy.signature import Feeding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from se_deploy.schema.input_spec import InputSpec, Resize

Precision = Literal["fp32", "fp16", "int8"]

ADVICE_SAMPLES = 1024
"""How many samples `inspect` looks at by default: half of them fit a block of some hundred hidden units."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How a network specification becomes an ONNX graph."""

    checkpoint: Path | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    input_size: tuple[int, ...] | None = None
    feeding: Feeding = field(default_factory=Feeding)  # where no image size says it
    opset: int = 20
    batch: int | None = None  # None: dynamic
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What replaces single fields of the network's own input spec."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Resize | None = None
    crop: float | None = None
    labels: Path | None = None
    size: tuple[int, ...] | None = None  # (C, H, W)

    def applied(self, spec: InputSpec | None) -> InputSpec | None:
        """Give `spec` with the fields that are set; None where nothing is known. Raises: BadInput."""
        if spec is None:
            if self.size is None:
                return None
            if len(self.size) != 3:  # noqa: PLR2004 - (C, H, W)
                raise BadInput(f"an image has three sizes, not {len(self.size)}", hint="as in 3x224x224")
            spec = input_spec.resized(None, self.size)
        elif self.size is not None and len(self.size) == len(spec.shape) and self.size != spec.shape:
            spec = input_spec.resized(spec, self.size)
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != spec.channels:
                raise BadInput(
                    f"--{what} has {len(values)} values for {spec.channels} channels",
                    hint=f"give {spec.channels} numbers joined by commas",
                )
        if self.crop is not None or self.resize is not None:
            spec = replace(spec, resize_size=None)  # the flags decide what is resized to
        return replace(
            spec,
            mean=self.mean or spec.mean,
            std=self.std or spec.std,
            resize=self.resize or spec.resize,
            crop=self.crop or spec.crop,
            labels=read_labels(self.labels) if self.labels else spec.labels,
        )


SEARCH_PLANS = 60
"""How many plans a search for rewrites may ask for: the graph as given, each form of a block (about ten),
mixtures of them, and each rewrite at each group of equal sites. The README's figures are made with it; a plan
takes one to five seconds. A budget in plans, not in seconds, makes two searches choose alike."""


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """Which exact rewrites may be tried, and for how long."""

    names: tuple[str, ...] | None = None  # None: the ones that are safe for the target; (): none
    search_plans: int = SEARCH_PLANS
    search_seconds: float | None = None
    replay: Path | None = None  # choices that an earlier search saved, applied without a search


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What INT8 is calibrated on, and how far it may go."""

    data: Path | None = None
    samples: int | None = None
    method: Literal["minmax", "percentile", "entropy", "mse"] | None = None  # None: the best of them
    cache: Path | None = None
    exclude_nodes: str | None = None  # regular expression over node names
    skip_unreadable: bool = False
    allow_random: bool = False
    policy: str | None = None  # None: the target's
    min_sqnr_db: float | None = None
    max_drop_points: float | None = None
    keep_fraction: float | None = None  # of the multiply-accumulates, left in FP16
    seed: int = 0


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names: a JSON list, or one name a line. Raises: BadInput."""
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            names = json.loads(text)
            if not isinstance(names, list):
                raise BadInput(f"'{path}' holds no JSON list", hint="write the class names as a JSON list")
            return tuple(str(name) for name in names)
    except (OSError, ValueError) as e:
        raise BadInput(f"'{path}' cannot be read: {e}", hint="write one class name a line") from e
    return tuple(line.strip() for line in text.splitlines() if line.strip())
