"""What an engine was built from and with, in a JSON file beside it; checked without a GPU.

An engine says nothing of itself to a machine that cannot load it. Its manifest does: hashes, precision,
shapes, versions, targets, the plan with its verdicts, and how to build it again with NVIDIA's own tool.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from se_deploy import files
from se_deploy.backends import registry
from se_deploy.errors import BadArtifact
from se_deploy.schema import builtins, encode, load, tool_version
from se_deploy.schema.files import EngineFeatures, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.backends.engine import Engine
    from se_deploy.backends.precision_check import PrecisionName
    from se_deploy.schema.common import Block, Plan
    from se_deploy.schema.input_spec import InputSpec


_OWN = "own_sha256"


class Checked(NamedTuple):
    """A manifest whose engine is the one that it describes, and what is worth a warning."""

    manifest: Manifest
    warnings: tuple[str, ...]


def describe(
    engine: Path,
    onnx: Path,
    built: Engine,
    *,
    precision: PrecisionName,
    requested: PrecisionName | None = None,
    calibration_sha256: str | None = None,
    cache: Path | None = None,
    image: InputSpec | None = None,
    plan: Plan | None = None,
    blocks: tuple[Block, ...] = (),
    stored: Path | None = None,
) -> Manifest:
    """Describe `built`, which goes to `engine` and was built from the file `onnx`, which is `stored` yet."""
    targets = tuple(built.plan.target.split("+"))
    engines = registry.get(built.runtime).engines
    return Manifest(
        engine=engine.name,
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        engine_bytes=len(built.data),
        onnx=onnx.name,
        onnx_sha256=files.sha256(stored or onnx),
        precision=precision,
        requested_precision=requested or precision,
        shapes=built.shapes,
        runtime=built.runtime,
        version=built.plan.version,
        targets=targets,
        trtexec=engines.command(engine.name, onnx.name, built) if engines else "",
        host={
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        tool_version=tool_version(),
        calibration_sha256=calibration_sha256,
        calibration_cache_sha256=files.sha256(cache) if cache is not None and cache.is_file() else None,
        input=image,
        plan=plan,
        blocks=blocks,
        features=_features(built),
        more_shapes=built.more_shapes,
    )


def _features(built: Engine) -> EngineFeatures:
    asked = built.features
    return EngineFeatures(
        tf32=asked.tf32,
        optimization_level=asked.optimization_level,
        version_compatible=asked.version_compatible,
        hardware_compatibility=asked.hardware_compatibility,
        sparsity=asked.sparsity,
        refit=asked.refit,
        strip_weights=asked.strip_weights,
        weight_streaming=asked.weight_streaming,
        dla_core=asked.dla_core,
        io_formats=dict(asked.io_formats),
        plugins={library.name: files.sha256(library) for library in asked.plugins},
        best_of=asked.best_of,
    )


def path_of(engine: Path) -> Path:
    """Return the path of an engine's manifest: OUT.engine.json beside OUT.engine."""
    return engine.with_name(f"{engine.name}.json")


def to_json(manifest: Manifest) -> str:
    """Return the text of a manifest's file, with the hash of what it says."""
    whole = replace(manifest, own_sha256=_digest(builtins(manifest)))
    return f"{encode(whole)}\n"


def _digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's keys, without the one that holds it."""
    others = {key: value for key, value in fields.items() if key != _OWN}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write(manifest: Manifest, path: Path) -> None:
    """Write a manifest as JSON."""
    files.write_text(path, to_json(manifest))


def read(engine: Path) -> Manifest:
    """Return the manifest beside `engine`. Raises: BadArtifact where there is none, or it is no manifest."""
    path = path_of(engine)
    if not path.exists():
        raise BadArtifact(
            f"'{engine}' has no manifest: '{path.name}' is not beside it",
            hint="keep both files together, or build the engine with `se-deploy build-engine`",
        )
    hint = "copy the manifest again, or build the engine again"
    manifest = load(path, Manifest, what="a manifest", error=BadArtifact, hint=hint)
    written = json.loads(path.read_text("utf-8-sig"))  # a newer version's keys too, which `Manifest` has not
    if manifest.own_sha256 is not None and manifest.own_sha256 != _digest(written):
        raise BadArtifact(
            f"'{path}' was changed since it was written: it is not what its hash says", hint=hint
        )
    return manifest


def check(engine: Path) -> Checked:
    """Hold an engine against its manifest, without a GPU.

    Raises: BadArtifact where its bytes are not the ones described, or are no engine of that runtime.
    """
    manifest = read(engine)
    backend = registry.get(manifest.runtime)
    try:
        with engine.open("rb") as file:
            magic = file.read(len(backend.magic))
        digest = files.sha256(engine)
    except OSError as e:
        raise BadArtifact(f"'{engine}' cannot be read: {e.strerror}", hint="build the engine again") from e
    if digest != manifest.engine_sha256:
        raise BadArtifact(
            f"'{engine}' is not the engine that '{path_of(engine).name}' describes: its sha256 is "
            f"{digest[:12]}..., not {manifest.engine_sha256[:12]}...",
            hint="copy both files again, or build the engine again",
        )
    if magic != backend.magic:
        raise BadArtifact(
            f"'{engine}' does not begin as a {backend.title} engine does", hint="build the engine again"
        )
    return Checked(manifest, tuple(_warnings(engine, manifest)))


def stand_in(engine: Path, manifest: Manifest) -> Path:
    """Return the ONNX file that may be judged in an engine's place: the very one that it was built from.

    `manifest`: as `check` returned it, so that engine and manifest agree already.
    Raises: BadArtifact where the file is not beside the engine under its own name, or was changed since.
    """
    onnx = engine.parent / manifest.onnx
    again = "copy engine, manifest and ONNX file again together, or build the engine again"
    if Path(manifest.onnx).name != manifest.onnx or not onnx.is_file():
        raise BadArtifact(
            f"'{engine}' cannot run here, and the ONNX file that it was built from, '{manifest.onnx}', "
            "is not beside it",
            hint=again,
        )
    if files.sha256(onnx) != manifest.onnx_sha256:
        raise BadArtifact(
            f"'{onnx}' is not the file that '{engine.name}' was built from: it was changed since, so its "
            "answers say nothing of the engine",
            hint=again,
        )
    return onnx


def _warnings(engine: Path, manifest: Manifest) -> list[str]:
    onnx = engine.parent / manifest.onnx
    if onnx.is_file() and files.sha256(onnx) != manifest.onnx_sha256:
        return [f"'{manifest.onnx}' is no longer the file that the engine was built from"]
    return []
