"""`bundle`: what goes to the device, in one folder that explains and checks itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from msgspec.structs import asdict, replace

import se_deploy
from se_deploy import batching, files, graph, locks, onnx_files, verification
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import reading
from se_deploy.data import preprocessing
from se_deploy.deploy import pbtxt
from se_deploy.errors import BadArtifact, BadInput, MissingRuntime, UnsupportedGraph, counted
from se_deploy.options import ImageOptions
from se_deploy.schema import encode, input_spec, tool_version
from se_deploy.schema.files import BundleInput
from se_deploy.schema.results import Bundle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.schema.files import Manifest
    from se_deploy.schema.input_spec import InputSpec

README, SUMS, INPUT, SCRIPT = "README.txt", "sha256sums.txt", "input.json", "predict.py"
RUNNER, PREPROCESSING = "run_engine.py", "preprocessing.py"

_DEPLOY = Path(__file__).parent.parent / "deploy"
_ON_DEVICE, _RUN_ENGINE = _DEPLOY / "on_device.py", _DEPLOY / RUNNER
_IMPORT = "from se_deploy.data.preprocessing import to_sample\n"
_IMPORT_BESIDE = "from preprocessing import to_sample\n"
_LOADER, _LOADED_AS = "import tensorrt as trt\n", "import {module} as trt\n"
_MANIFEST, _MANIFEST_IS = 'MANIFEST = "net.engine.json"', "MANIFEST = {name}"

Part = Path | bytes
"""A file to copy, or what to write."""


@dataclass(frozen=True, slots=True)
class _Cargo:
    """What is bundled, and what is known of it."""

    path: Path
    manifest: Manifest | None  # None for an ONNX file
    onnx: Path | None  # the graph; None where an engine came without it
    model: ir.Model | None
    spec: InputSpec | None
    respecified: bool  # flags changed the input spec
    warnings: tuple[str, ...]


def bundle(
    artifact: str | Path,
    folder: str | Path,
    *,
    triton: bool = False,
    name: str | None = None,
    image: ImageOptions | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Fill `folder` with an engine or an ONNX file and all that belongs to it.

    With `triton`, as a model repository of Triton Inference Server; `name` is then the model's. All files
    are made before the first takes its place. Raises: BadArtifact for an engine that is not its manifest's;
    BadModel; BadInput; OutputExists; CannotWrite.
    """
    cargo = _cargo(Path(artifact), image or ImageOptions(), triton=triton)
    folder = Path(folder)
    model, notes = None, cargo.warnings
    if triton:
        model, parts, alone = _repository(cargo, name)
        notes += alone
    else:
        parts = _plain(cargo)
    _write(folder, parts, overwrite=overwrite, sums=not triton)
    written = (*parts, SUMS) if not triton else tuple(parts)
    return Bundle(
        tool_version=tool_version(),
        warnings=notes,
        folder=str(folder),
        files=written,
        triton=triton,
        model=model,
    )


def _cargo(path: Path, image: ImageOptions, *, triton: bool) -> _Cargo:
    """Look at what is to be bundled; an engine is held against its manifest."""
    kind = reading.kind_of(str(path))
    if kind == "network":
        raise BadInput(f"'{path}' is neither an engine nor an ONNX file", hint="export or build it first")
    manifest, own = None, None
    onnx_file: Path | None = path
    notes: list[str] = []
    if kind == "engine":
        manifest, warnings = manifests.check(path)
        notes += warnings
        own = manifest.input
        onnx_file = path.parent / Path(manifest.onnx).name
        if onnx_file.is_file():
            manifests.stand_in(path, manifest)  # a swapped file would travel as the engine's own
        else:
            notes.append(
                f"'{onnx_file.name}' is not beside the engine: the bundle has no file to build it again from"
            )
            onnx_file = None
    model = reading.load_onnx(onnx_file, ImageOptions()) if onnx_file else None
    if kind == "onnx" and model is not None:
        own = input_spec.read(model.metadata_props)
    spec = image.applied(own)
    if spec is not None and spec != own and model is not None and len(model.graph.inputs) == 1:
        spec = replace(spec, name=model.graph.inputs[0].name or spec.name)
    if spec is None:
        missing = f"the parameter '{pbtxt.PARAMETER}'" if triton else INPUT
        notes.append(
            f"'{path.name}' does not say how an image becomes its input, so {missing} is left out: "
            "pass --input-size, --mean and --std"
        )
    if model is not None and spec is not None and spec.labels and pbtxt.labelled(model, spec) is None:
        notes.append(f"{counted(len(spec.labels), 'label', ('fits', 'fit'))} no output")
    return _Cargo(path, manifest, onnx_file, model, spec, spec != own, tuple(notes))


def _plain(cargo: _Cargo) -> dict[str, Part]:
    """Return the files of a plain bundle by name, but for the checksums."""
    parts: dict[str, Part] = {}
    if cargo.manifest is not None:
        parts[cargo.path.name] = cargo.path
        text = manifests.to_json(replace(cargo.manifest, input=cargo.spec))
        own = manifests.path_of(cargo.path)
        parts[own.name] = text.encode() if cargo.respecified else own
        if cargo.onnx is not None:
            parts[cargo.onnx.name] = cargo.onnx
            parts |= {name: cargo.onnx.parent / name for name in onnx_files.weight_files(cargo.onnx)}
        parts |= _runner(cargo.manifest, own.name)
    elif cargo.onnx is not None:
        parts[cargo.onnx.name] = _onnx(cargo, cargo.onnx)
    if cargo.spec is not None:
        if cargo.spec.labels:
            parts[pbtxt.LABELS] = _labels(cargo.spec)
        onnx_name = cargo.onnx.name if cargo.onnx is not None else None
        written = BundleInput(**asdict(cargo.spec), onnx=onnx_name)
        parts[INPUT] = f"{encode(written)}\n".encode()
        if cargo.model is not None and _classifies(cargo.model):
            parts[SCRIPT] = _script()
    return {**parts, README: _readme(cargo, parts).encode()}


def _script() -> bytes:
    """Return the example script with the package's own preprocessing in it: the device has no package."""
    head, found, tail = _ON_DEVICE.read_text("utf-8").partition(_IMPORT)
    assert found, f"{_ON_DEVICE.name} imports the preprocessing in another way"  # noqa: S101 - ours, not the user's
    _, _, body = Path(preprocessing.__file__).read_text("utf-8").partition("import annotations\n")
    return f"{head.rstrip()}\n{body}{tail}".encode()


def _runner(manifest: Manifest, name: str) -> dict[str, Part]:
    """Return the script that runs an engine on the device, and the preprocessing that it imports.

    `name`: of the manifest's file, for a folder may hold the manifests of several engines.
    Nothing where the backend's engines load in no Python, or where this one takes more than its file:
    weights, plug-ins, a DLA core, tensors in a layout of the device's.
    """
    engines, f = registry.get(manifest.runtime).engines, manifest.features
    if f is not None and (f.strip_weights or f.plugins or f.io_formats or f.dla_core is not None):
        return {}
    if engines is None:
        return {}
    text = _RUN_ENGINE.read_text("utf-8")
    own = {
        _LOADER: _LOADED_AS.format(module=engines.module),
        _IMPORT: _IMPORT_BESIDE,
        _MANIFEST: _MANIFEST_IS.format(name=ascii(name)),
    }
    for line, wanted in own.items():
        assert line in text, f"{RUNNER} has no line {line!r}"  # noqa: S101 - ours, not the user's
        text = text.replace(line, wanted)
    return {RUNNER: text.encode(), PREPROCESSING: Path(preprocessing.__file__).read_bytes()}


def _repository(cargo: _Cargo, wanted: str | None) -> tuple[str, dict[str, Part], tuple[str, ...]]:
    """Return the model's name, the files of a model repository, and why no requests are put together."""
    manifest = cargo.manifest
    backend = registry.graphs() if manifest is None else registry.get(manifest.runtime)
    if backend.triton is None:
        known = [b for b in registry.every() if b.triton is not None and b.engines is not None]
        titles, names = " or ".join(b.title for b in known), " or ".join(b.name for b in known)
        raise BadInput(
            f"'{cargo.path}' is an engine of {backend.title}; Triton loads engines of {titles} only",
            hint=f"bundle {cargo.onnx or 'the ONNX file'} in its place, or build with --runtime {names}",
        )
    if cargo.model is None or cargo.onnx is None:
        raise BadArtifact(
            f"the inputs and outputs of '{cargo.path}' are unknown: its ONNX file is not beside it",
            hint="keep both files together, or build the engine again",
        )
    f = manifest.features if manifest is not None else None
    if f is not None and (f.strip_weights or f.io_formats):
        what = "was built without its weights" if f.strip_weights else "packs its inputs or outputs"
        raise BadArtifact(
            f"'{cargo.path}' {what}, which Triton does not expect",
            hint="build it again without --strip-weights and --io-format",
        )
    name = pbtxt.model_name(cargo.path.stem, wanted)
    comments = [f"Made by se-deploy {se_deploy.__version__} from {cargo.path.name}."]
    if manifest is not None:
        comments.append(
            f"Needs a Triton with {backend.title} {manifest.version} and the GPU that it was built on."
        )
        if f is not None and f.plugins:
            comments.append(f"Preload its plug-ins into the server (LD_PRELOAD): {', '.join(f.plugins)}.")
        if f is not None and f.version_compatible:
            comments.append("Or a later one with --backend-config=tensorrt,version-compatible=true.")
    alone = _not_batched(cargo.model, cargo)
    text = pbtxt.config(
        name,
        cargo.model,
        platform=backend.triton,
        spec=cargo.spec,
        manifest=manifest,
        apart=not alone,
        comments=comments,
    )
    served: Part = cargo.path if manifest is not None else _onnx(cargo, cargo.onnx)
    parts: dict[str, Part] = {f"{name}/config.pbtxt": text.encode()}
    if cargo.spec is not None and pbtxt.labelled(cargo.model, cargo.spec) is not None:
        parts[f"{name}/{pbtxt.LABELS}"] = _labels(cargo.spec)
    return name, {**parts, f"{name}/1/{backend.triton.file}": served}, alone


def _not_batched(model: ir.Model, cargo: _Cargo) -> tuple[str, ...]:
    """Return why requests are not put together although first dimensions are free, for the user to read."""
    if any((graph.dims(value) or (0,))[0] is not None for value in model.graph.inputs):
        return ()
    if not pbtxt.batches(model):
        why = "the first dimension does not count the samples in every input and output"
    else:
        why = _mixing(model, cargo)
    said = "max_batch_size is 0, so that Triton puts no requests together"
    return (f"{why}: {said}",) if why else ()


def _mixing(model: ir.Model, cargo: _Cargo) -> str:
    """Return why rows of several requests cannot be fed as one batch, "" where they can: noise shows it.

    What the first dimension is called says nothing: a graph may read it as a sequence, or average over it.
    """
    shapes = {} if cargo.manifest is None else {n: one.opt for n, one in cargo.manifest.shapes.items()}
    try:
        with registry.graph_runtime(SessionOptions()).open(model) as session:
            probes = verification.choose(model, session, image=cargo.spec, shapes=shapes)
            asked = [(one.feeds, session.run(one.feeds)) for one in probes if one.kind == "noise"]
            if max(batching.rows(feeds) for feeds, _ in asked) == 1:
                return "the graph takes one sample at a time"
            return "; ".join(verification.mixed(session.run, session.inputs, asked))
    except (UnsupportedGraph, BadArtifact, BadInput, MissingRuntime) as e:
        return f"whether samples of one batch are answered each by itself is not known ({e.message})"


def _onnx(cargo: _Cargo, path: Path) -> Part:
    """Return the file as it is, unless its weights lie beside it or flags changed its input spec."""
    if not onnx_files.weight_files(path) and not cargo.respecified:
        return path
    model = ir.from_proto(onnx.load(path))
    if cargo.spec is not None:
        input_spec.write(model.metadata_props, cargo.spec)
    return graph.to_bytes(model)


def _labels(spec: InputSpec) -> bytes:
    """One class name a line."""
    return "".join(f"{' '.join(label.split())}\n" for label in spec.labels).encode()


def _classifies(model: ir.Model) -> bool:
    """Whether the example script can run it: one image in, float or frames, scores (N, classes) out."""
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    taken = model.graph.inputs
    scores = (v for v in model.graph.outputs if v.dtype in floats and len(graph.dims(v) or ()) == 2)  # noqa: PLR2004
    return len(taken) == 1 and taken[0].dtype in {*floats, ir.DataType.UINT8} and any(scores)


def _readme(cargo: _Cargo, parts: Mapping[str, Part]) -> str:
    """Return what is here, what it needs, and how it is run."""
    manifest, name = cargo.manifest, cargo.path.name
    engines = None if manifest is None else registry.get(manifest.runtime).engines
    lines = [f"{name}, bundled by se-deploy {se_deploy.__version__}", "", "What is here"]
    said = {
        pbtxt.LABELS: "class names, one a line, in the order of the output",
        INPUT: "how an image becomes the input, as JSON",
        SCRIPT: "an example: the ONNX file on the CPU, with numpy, Pillow and onnxruntime",
        RUNNER: "runs the engine, with numpy, Pillow and the device's own TensorRT",
        PREPROCESSING: f"how {RUNNER} prepares an image",
    }
    if manifest is None:
        said[name] = f"the network as ONNX, opset {graph.opset(cargo.model) if cargo.model else '?'}"
    else:
        title = f"{registry.title(manifest.runtime)} {manifest.version}"
        said[name] = f"the engine: {title}, {manifest.precision.upper()}, for {' '.join(manifest.targets)}"
        said[manifests.path_of(cargo.path).name] = "its manifest: hashes, versions, shapes, the plan"
        if cargo.onnx is not None:
            said[cargo.onnx.name] = "the ONNX file that it was built from"
            said |= dict.fromkeys(onnx_files.weight_files(cargo.onnx), "weights of the ONNX file")
    width = max(map(len, (*parts, SUMS)))
    lines += [f"  {part:{width}}  {said[part]}" for part in parts]
    lines += [f"  {SUMS:{width}}  check the copy with: sha256sum -c {SUMS}", "", "What it needs"]
    if manifest is None:
        title = registry.graphs().title
        lines.append(f"  {title}, or a compiler of the device: se-deploy build-engine.")
    elif engines is not None:
        lines.append(f"  {engines.needs(manifest.version, manifest.targets)}")
    lines += ["", "How it is run"]
    if INPUT in parts:
        lines.append(f"  se-deploy predict {name} IMAGE.jpg")
        lines += [f"  python3 {script} IMAGE.jpg" for script in (RUNNER, SCRIPT) if script in parts]
    if RUNNER in parts:
        lines.append(f"  python3 {RUNNER} --arrays IN.npz OUT.npz")
    if manifest is not None:
        if engines is not None:
            lines.append(f"  {engines.load_command(name)}")
        if cargo.onnx is not None:
            lines += ["", "How it is built again, on another device or version", f"  {manifest.trtexec}"]
    return "\n".join(lines) + "\n"


def _write(folder: Path, parts: Mapping[str, Part], *, overwrite: bool, sums: bool) -> None:
    """Make every file aside, then let each take its place, the checksums last."""
    with locks.folder(folder):
        for name in (*parts, *([SUMS] if sums else [])):
            files.claim(folder / name, overwrite=overwrite)
        stale = _stale(folder, parts) if sums else ()
        with files.together() as publish:
            digests = []
            for name, part in parts.items():
                made = publish(folder / name)
                if isinstance(part, bytes):
                    made.write_bytes(part)
                else:
                    shutil.copyfile(part, made)
                digests.append(_sum_line(files.sha256(made), name))
            if sums:
                publish(folder / SUMS).write_text("".join(digests), "utf-8", errors="surrogateescape")
        for path in stale:
            path.unlink()


def _stale(folder: Path, parts: Mapping[str, Part]) -> tuple[Path, ...]:
    """Return what an earlier bundle left in the folder and scripts of this one would take for its own."""
    sums = folder / SUMS
    if not sums.is_file():
        return ()
    listed = {line[66:] for line in sums.read_text("utf-8", errors="surrogateescape").splitlines()}
    gone = {INPUT, SCRIPT, RUNNER, PREPROCESSING, pbtxt.LABELS} - set(parts)
    return tuple(folder / name for name in sorted(gone & listed) if (folder / name).is_file())


def _sum_line(digest: str, name: str) -> str:
    r"""Return a line as sha256sum writes and reads it: a name with a line feed or a backslash is escaped."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
