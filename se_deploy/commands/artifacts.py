"""An artifact, whatever it is, becomes an open session: a network specification, an ONNX file, an engine."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import data, fusion, graph
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import reading, source
from se_deploy.errors import BadData, MissingRuntime
from se_deploy.frontend import image_input
from se_deploy.options import HostOptions, NetworkOptions, SampleOptions
from se_deploy.quantization import fp16_rounding
from se_deploy.quantization.fp16_rounding import Evaluation
from se_deploy.schema import input_spec, provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from se_deploy.backends.backend import Backend
    from se_deploy.options import Precision
    from se_deploy.plan import Plan
    from se_deploy.protocols import Session
    from se_deploy.schema.files import Manifest
    from se_deploy.schema.input_spec import InputSpec


@dataclass(frozen=True, slots=True)
class Opened:
    """An open artifact and what is known of it."""

    session: Session
    runtime: str
    device: str
    precision: Precision
    image: InputSpec | None
    model: ir.Model | None  # the graph, where there is one
    checked_as: str | None = None  # what stands in for the artifact, in words
    name: str = ""  # what it is called in results; the argument it was opened from where empty
    random_weights: bool = False  # drawn, not trained: which class is largest means nothing
    evaluated: str | None = None  # "engine" or "plan-rounded"; None: by the runtime itself
    runs: ir.Model | None = None  # what the session runs of `model`: the same, or what rounds it to FP16
    rounding: str | None = None  # where its numbers are rounded to FP16, in words; None where nothing is


@contextlib.contextmanager
def opened(
    artifact: str | Path | Opened,
    *,
    exact: bool = False,
    stand_in: bool = False,
    host: HostOptions | None = None,
    network: NetworkOptions | None = None,
) -> Iterator[Opened]:
    """Open an artifact where it runs.

    `exact` runs an ONNX file node by node, without the runtime's own fusions, every FP16 tensor rounded: the
    numbers that the file means. `stand_in` lets the ONNX file that an engine was built from answer for it
    where no GPU is that it was built for, rounded where the engine's plan rounds, if engine, manifest and
    ONNX file agree by their hashes.
    Raises: BadModel, BadArtifact, MissingRuntime.
    """
    if isinstance(artifact, Opened):
        yield artifact
        return
    kind = reading.kind_of(artifact)
    host, network = host or HostOptions(), network or NetworkOptions()
    if kind == "network":
        yield _network(str(artifact), host, network)
        return
    if kind == "engine":
        with _engine(Path(artifact), stand_in=stand_in, host=host) as engine:
            named = engine.image.layout if engine.image is not None and engine.image.is_frames else None
            taken = image_input.of_inputs(engine.session.inputs, network.image.layout or named)
            spec = image_input.described(engine.image, taken, network.image.size)
            yield dataclasses.replace(engine, image=network.image.applied(spec))
        return
    model = reading.load_onnx(Path(artifact), network.image)
    precision = reading.precision_of(model)
    run = Evaluation(model, None)
    if exact and host.device == "cpu":  # a GPU's FP16 kernels round by themselves, those of the CPU do not
        run = fp16_rounding.evaluation(model)
    runtime = registry.graph_runtime(SessionOptions(threads=host.threads, exact=exact, device=host.device))
    with runtime.open(run.model) as session:
        yield Opened(
            session,
            runtime.name,
            _device_name(runtime.device),
            precision,
            input_spec.read(model.metadata_props),
            model,
            random_weights=_random(model),
            runs=run.model,
            rounding=run.rounding,
        )


def unused(network: NetworkOptions) -> list[str]:
    """Return what to warn of where artifacts are only run: an operator set is for what is written."""
    return [] if network.opset is None else [f"--opset {network.opset} was not used: nothing is written here"]


def read_data(
    path: Path,
    session: Session,
    image: InputSpec | None,
    samples: SampleOptions | None = None,
) -> data.Samples:
    """Read samples for a session: images by its input spec, arrays as they are. Raises: BadData."""
    prepared = data.is_prepared(path, session.inputs)
    if image is None and not prepared:
        raise BadData(
            f"the network does not say how images become its input, so '{path}' cannot be used",
            hint=data.how_to_describe(session.inputs),
        )
    samples = samples or SampleOptions()
    found = data.read(
        path,
        list(session.inputs) if prepared or image is None else [image],
        image=image,
        limit=samples.limit,
        skip_unreadable=samples.skip_unreadable,
        seed=samples.seed,
    )
    return dataclasses.replace(found, warnings=(*found.warnings, *data.copy_doubts(found)))


def batch_size(session: Session, wanted: int) -> int:
    """Return the batch that a graph accepts: its own where it is frozen, else `wanted`."""
    frozen = [spec.dims[0] for spec in session.inputs if spec.dims and spec.dims[0] is not None]
    return frozen[0] if frozen else wanted


def cpu_name() -> str:
    """Name this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    return cpu_name() if device == "cpu" else device


def _network(artifact: str, host: HostOptions, options: NetworkOptions) -> Opened:
    network = source.load_network(artifact, options)
    session = registry.network_session(network, SessionOptions(threads=host.threads, device=host.device))
    return Opened(
        session,
        registry.reference().name,
        _device_name(host.device),
        "fp32",
        options.image.applied(network.image),
        None,
        random_weights=provenance.are_random(network.weights),
    )


def _random(model: ir.Model) -> bool:
    return provenance.are_random(provenance.weights_of(model.metadata_props))


@contextlib.contextmanager
def _engine(path: Path, *, stand_in: bool, host: HostOptions) -> Iterator[Opened]:
    options = SessionOptions(plugins=host.plugins, cuda_graph=host.cuda_graph)
    makers = registry.of_suffix(path.suffix)
    if all(backend.engines is None for backend in makers):  # made elsewhere, so that no manifest came with it
        with (runtime := registry.engine_runtime(makers[0], options)).open(path) as session:
            yield Opened(session, runtime.name, runtime.device, "fp32", None, None, evaluated="engine")
        return
    manifest = manifests.check(path).manifest
    built_with = manifest.features
    host_code = built_with is not None and built_with.version_compatible
    options = dataclasses.replace(options, host_code=host_code)
    backend = registry.get(manifest.runtime)
    runtime = registry.engine_runtime(backend, options)
    with contextlib.ExitStack() as stack:
        reason = ""
        try:  # the opening alone: what fails in use is no missing runtime
            _refuse_elsewhere(path, manifest, backend)
            session = stack.enter_context(runtime.open(path))
        except MissingRuntime as e:
            if not stand_in:
                raise
            reason = e.message
        if not reason:
            yield Opened(
                session,
                runtime.name,
                runtime.device,
                manifest.precision,
                manifest.input,
                None,
                evaluated="engine",
            )
            return
    onnx = manifests.stand_in(path, manifest)
    model = graph.load(onnx)
    run = fp16_rounding.evaluation(model, _plan(manifest))
    at = f", {run.rounding}" if run.rounding else ""
    exact = registry.graph_runtime(SessionOptions(threads=host.threads, exact=True))
    runs = registry.title(exact.name)
    with exact.open(run.model) as session:
        yield Opened(
            session,
            exact.name,
            cpu_name(),
            manifest.precision,
            manifest.input,
            model,
            f"the engine itself was not run ({reason}): its numerics were checked through the ONNX file "
            f"that it was built from, {onnx.name}{at}, in {runs} with optimizations off",
            random_weights=_random(model),
            runs=run.model,
            evaluated="plan-rounded" if run.rounding == fp16_rounding.AT_BOUNDARIES else None,
            rounding=run.rounding,
        )


def _refuse_elsewhere(path: Path, manifest: Manifest, backend: Backend) -> None:
    """Raise MissingRuntime where the GPU at hand is none of those that an engine was built for."""
    here = backend.engines.here() if backend.engines else None
    portable = manifest.features is not None and manifest.features.hardware_compatibility is not None
    if here is None or portable or here.name in manifest.targets:
        return
    raise MissingRuntime(
        f"'{path}' was built for {', '.join(manifest.targets)}, "
        f"and this machine's GPU is {here.called} ({here.name})",
        hint=f"run it where it belongs, or build it with --target {here.name} if {backend.title} has that",
    )


def _plan(manifest: Manifest) -> Plan | None:
    """Return the plan in an engine's manifest; None where it was written without one."""
    return None if manifest.plan is None else fusion.from_schema(manifest.plan)
