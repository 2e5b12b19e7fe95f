"""A network specification becomes an eval-mode module with its input spec.

Specifications: `timm:NAME`, `torchvision:NAME`, `se_deploy:NAME`, `package.module:callable`,
`path/to/file.py:callable`, `path/to/model.pt2`. Weights are seeded random ones unless a checkpoint is
named or pretrained ones are asked for. A checkpoint is read as tensors only: nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn
from torch._export.verifier import SpecViolationError

from se_deploy import extras, files, torch_files
from se_deploy.errors import BadInput, BadModel, meant
from se_deploy.frontend import checkpoints, public_zoos
from se_deploy.frontend.examples import EXAMPLE_BATCH, answer_of, dtype_name, examples_of, output_names
from se_deploy.frontend.public_zoos import INPUT_NAME, Built
from se_deploy.schema import input_spec, provenance
from se_deploy.schema.input_spec import InputSpec
from se_deploy.signature import BATCH, DeclaredInput, Feeding, free_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Args = Mapping[str, Any]

_ZOOS = ("timm", "torchvision", "se_deploy")


@dataclass(frozen=True, slots=True)
class Network:
    """A module in eval mode, what it is fed, and where its weights came from."""

    spec: str
    module: nn.Module
    examples: tuple[torch.Tensor, ...]  # one batch for each positional input
    output_names: tuple[str, ...]
    image: InputSpec | None  # None where the input is no image (N, C, H, W)
    weights: str  # "checkpoint FILE (sha256 ...)", "pretrained" or "random, seed N"
    warnings: tuple[str, ...] = ()
    frozen: tuple[Any, ...] = ()  # what `networks.freeze` found, one entry per adaptive block
    declared: tuple[DeclaredInput, ...] = ()  # () where only the batch is free
    program: torch.export.ExportedProgram | None = None  # where the module came out of one
    answer: Any = None  # what the module gives for `examples`; None where it was not asked

    @property
    def inputs(self) -> tuple[DeclaredInput, ...]:
        """The graph's inputs, in order: as declared, else the examples' shapes with a free batch."""
        if self.declared:
            return self.declared
        names = [f"{INPUT_NAME}_{i}" for i in range(len(self.examples))]
        if len(names) == 1:
            names = [self.image.name if self.image else INPUT_NAME]
        return tuple(
            DeclaredInput(name, (BATCH, *example.shape[1:]), dtype_name(example))
            for name, example in zip(names, self.examples, strict=True)
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's input names, in order."""
        return tuple(one.name for one in self.inputs)


def load(
    spec: str,
    *,
    checkpoint: Path | None = None,
    model_args: Args | None = None,
    pretrained: bool = False,
    input_size: tuple[int, ...] | None = None,
    feeding: Feeding | None = None,
    seed: int = 0,
) -> Network:
    """Build the network that `spec` names, in eval mode.

    `input_size` is (C, H, W), or (C, L) and (C, D, H, W) for networks that take no images; `feeding` says it
    of networks with several inputs or other free dimensions than the batch.
    Raises: BadModel (unknown name, wrong checkpoint), BadInput (arguments), MissingRuntime (an extra).
    """
    torch.manual_seed(seed)
    args = dict(model_args or {})
    if checkpoint is not None and pretrained:
        raise BadInput("--checkpoint and --pretrained name two sets of weights", hint="choose one of them")
    if spec.endswith(".pt2"):
        _refuse_for_program(
            spec,
            {
                "--checkpoint": checkpoint,
                "--pretrained": pretrained,
                "--model-arg": args,
                "--input": feeding is not None and feeding.inputs,
                "--example": feeding is not None and feeding.example,
            },
        )
        network = _from_program(Path(spec))
        if input_size is not None and [d.dims[1:] for d in network.declared] != [input_size]:
            _refuse_for_program(spec, {f"--input-size {'x'.join(map(str, input_size))}": True})
        return network
    source, colon, name = spec.partition(":")
    if not colon or not name:
        raise BadModel(f"'{spec}' names no network and no ONNX file", hint=_SPEC_HINT)
    with _quiet_imports(spec):
        if source == "timm":
            built = public_zoos.from_timm(name, args, pretrained=pretrained, input_size=input_size)
        elif source == "torchvision":
            built = public_zoos.from_torchvision(name, args, pretrained=pretrained, input_size=input_size)
        elif source == "se_deploy":
            built = _from_registry(name, args, input_size=input_size)
        else:
            built = Built(_from_callable(source, name, args), None)
    if pretrained and source not in {"timm", "torchvision"}:
        raise BadInput(f"'{source}' has no pretrained weights", hint="name a file with --checkpoint")
    module, image, notes = built.module, built.image, [*built.warnings]
    if checkpoint is not None:
        notes += checkpoints.load(module, checkpoint)
        weights = f"checkpoint {checkpoint.name} (sha256 {files.sha256(checkpoint)[:12]})"
    elif pretrained:
        weights = "pretrained"
    else:
        weights = provenance.random_weights(seed)
        notes.append(
            f"'{spec}' has random weights (seed {seed}): its answers mean nothing; "
            "name weights with --checkpoint FILE or --pretrained"
        )
    module = module.eval()
    if built.as_function is not None:  # only now: a checkpoint is of the network as its library builds it
        module = built.as_function(module).eval()
    frozen = _freeze(module)
    if input_size is not None and (image is None or input_size != image.shape):
        image = _image_of_size(image, input_size)
    feeding = _fed(built, feeding or Feeding(), input_size)
    dims = input_size or (image.shape if image else None)
    found = examples_of(module, spec, feeding, dims, seed)
    if found.declared:
        image = image_of(found.declared, image, feeding.sizes)
    answer = answer_of(module, found.tensors, spec)
    return Network(
        spec=spec,
        module=module,
        examples=found.tensors,
        output_names=output_names(answer),
        image=image,
        weights=weights,
        warnings=(*notes, *found.warnings),
        frozen=frozen,
        declared=found.declared,
        answer=answer,
    )


_SPEC_HINT = (
    "use timm:NAME, torchvision:NAME, se_deploy:NAME, package.module:callable, path/to/file.py:callable, "
    "path/to/model.pt2 or an ONNX file; `se-deploy networks` lists the ones that ship"
)


@contextlib.contextmanager
def _quiet_imports(spec: str) -> Iterator[None]:
    """Let a specification import from the working directory, and leave the path as it was."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        with extras.needed_for(f"'{spec}'"):
            yield
    except ImportError as e:
        source, _, name = spec.partition(":")
        near = difflib.get_close_matches(source, _ZOOS, n=1)
        likely = f"did you mean '{near[0]}:{name}'? " if near else ""
        raise BadModel(f"'{spec}' cannot be imported: {e}", hint=f"{likely}{_SPEC_HINT}") from e
    finally:
        sys.path[:] = before


def _from_registry(name: str, args: dict[str, Any], *, input_size: tuple[int, ...] | None) -> Built:
    from se_deploy import networks  # noqa: PLC0415 - the zoo is loaded only where it is used

    entry = networks.NETWORKS.get(name)
    if entry is None:
        raise BadModel(
            f"no network '{name}' ships",
            hint=f"{meant(name, networks.NETWORKS)}`se-deploy networks` lists the ones that do",
        )
    channels, *sides = entry.input_size
    if input_size is not None and input_size[0] != channels:
        args.setdefault("in_channels", input_size[0])
    channels = int(args.get("in_channels", channels))
    with public_zoos.constructor(f"se_deploy:{name}"):
        module = entry.build(**args)
    declared = None
    if entry.free:
        dims = [own or size for own, size in zip(entry.free, (channels, *sides), strict=True)]
        declared = DeclaredInput(entry.input_name, (BATCH, *dims))
    image = None
    if len(sides) == 2:  # noqa: PLR2004 - (H, W)
        image = InputSpec(
            name=INPUT_NAME,
            channels=channels,
            height=sides[0],
            width=sides[1],
            mean=input_spec.per_channel(entry.mean, channels),
            std=input_spec.per_channel(entry.std, channels),
            labels=tuple(entry.labels),
        )
    return Built(module, image, declared=declared, size=(channels, *sides))


def _fed(built: Built, feeding: Feeding, input_size: tuple[int, ...] | None) -> Feeding:
    """Return how a network is fed: as the user says, else as the network itself leaves its sizes free."""
    one = built.declared
    resized = input_size is not None and one is not None and bool(free_names((one,)))
    if one is None or feeding.inputs or feeding.example is not None or resized:
        return feeding
    shape = feeding.shapes.get(one.name, (EXAMPLE_BATCH, *built.size))
    return replace(feeding, inputs=(one,), shapes={**feeding.shapes, one.name: shape})


def _from_callable(source: str, name: str, args: dict[str, Any]) -> nn.Module:
    spec = f"{source}:{name}"
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise BadModel(f"'{source}' is no file", hint=_SPEC_HINT)
        found = importlib.util.spec_from_file_location(path.stem, path)
        if found is None or found.loader is None:
            raise BadModel(f"'{source}' is no Python file", hint=_SPEC_HINT)
        scope = importlib.util.module_from_spec(found)
        found.loader.exec_module(scope)
    else:
        scope = importlib.import_module(source)
    build = getattr(scope, name, None)
    if not callable(build):
        made = [word for word in vars(scope) if callable(getattr(scope, word))]
        raise BadModel(f"'{source}' has no callable '{name}'", hint=f"{meant(name, made)}{_SPEC_HINT}")
    with public_zoos.constructor(spec):
        module = build(**args)
    if not isinstance(module, nn.Module):
        raise BadModel(f"'{spec}' gave a {type(module).__name__}, no torch.nn.Module", hint="return a module")
    return module


def _refuse_for_program(spec: str, given: Mapping[str, object]) -> None:
    """Raise BadInput for an option that would change what a program was exported with."""
    named = [flag for flag, value in given.items() if value]
    if named:
        raise BadInput(
            f"{', '.join(named)} cannot change '{spec}': a program holds its weights, arguments and inputs",
            hint="leave it out, or name the network in Python (path/to/file.py:callable)",
        )


def _from_program(path: Path) -> Network:
    if not path.is_file():
        raise BadModel(f"'{path}' is no file", hint=_SPEC_HINT)
    files.check_regular(path, error=BadModel)
    other = torch_files.described(path)
    if other is not None and torch_files.kind_of(path) != "program":
        raise BadModel(f"'{path}' is no program of torch.export but {other.what}", hint=other.hint)
    with files.parsing(
        path,
        "cannot be read as a torch.export program",
        error=BadModel,
        hint="save it again",
        also=(SpecViolationError,),
    ):
        program = torch.export.load(path)
    args, kwargs = program.example_inputs or ((), {})
    if kwargs or not args or not all(isinstance(arg, torch.Tensor) for arg in args):
        raise BadModel(
            f"'{path}' takes other than positional tensors", hint="export it with positional tensors only"
        )
    with files.parsing(path, "holds a program that cannot be run", error=BadModel, hint="save it again"):
        module = program.module()
    for part in module.modules():
        part.training = False  # a program is what it was exported as, and refuses to be told
    examples = tuple(args)
    declared = _declared_by(program, examples)
    answer = answer_of(module, examples, str(path))
    return Network(
        spec=str(path),
        module=module,
        examples=examples,
        output_names=output_names(answer),
        image=image_of(declared, None),
        weights=f"program {path.name} (sha256 {files.sha256(path)[:12]})",
        declared=declared,
        program=program,
        answer=answer,
    )


def _declared_by(
    program: torch.export.ExportedProgram, examples: tuple[torch.Tensor, ...]
) -> tuple[DeclaredInput, ...]:
    """Return a program's inputs: the names of its signature, free where its own shapes are symbols."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [str(name) for name in program.graph_signature.user_inputs]
    symbols: dict[str, str] = {}
    declared = []
    for name, example in zip(names, examples, strict=True):
        dims: list[int | str] = []
        for axis, size in enumerate(nodes[name].meta["val"].shape):
            if isinstance(size, int):
                dims.append(size)
            else:
                fresh = BATCH if axis == 0 and not symbols else f"d{len(symbols)}"
                dims.append(symbols.setdefault(str(size), fresh))
        only = len(names) == 1 and example.ndim > 1
        declared.append(DeclaredInput(INPUT_NAME if only else name, tuple(dims), dtype_name(example)))
    return tuple(declared)


def image_of(
    declared: Sequence[DeclaredInput],
    known: InputSpec | None,
    named: Mapping[str, int] = MappingProxyType({}),
) -> InputSpec | None:
    """Return the input spec where the inputs are one float image (N, C, H, W); None elsewhere.

    `known`: what is known of its preprocessing. Free sizes are those `named`, else `known`'s own.
    """
    if len(declared) != 1 or declared[0].dtype != "float32":
        return None
    _, *rest = declared[0].dims or (BATCH,)
    own = known.shape if known is not None and len(known.shape) == len(rest) else (None,) * len(rest)
    found = [
        dim if isinstance(dim, int) else named.get(dim, size) for dim, size in zip(rest, own, strict=True)
    ]
    sizes = tuple(dim for dim in found if dim is not None)
    if len(sizes) != len(rest):
        return None
    if known is not None and known.shape == sizes:
        return msgspec.structs.replace(known, name=declared[0].name)
    return _image_of_size(known, sizes, declared[0].name)


def _freeze(module: nn.Module) -> tuple[Any, ...]:
    from se_deploy import networks  # noqa: PLC0415

    return tuple(networks.freeze(module))


def _image_of_size(
    image: InputSpec | None, dims: tuple[int, ...], name: str = INPUT_NAME
) -> InputSpec | None:
    """`image` with another size; plain [0, 1] pixels where nothing was known; None for no image."""
    if len(dims) != 3:  # noqa: PLR2004 - (C, H, W)
        return None
    return msgspec.structs.replace(input_spec.resized(image, dims), name=name)
