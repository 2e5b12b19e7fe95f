"""Every reader of files that strangers may have written, and good files to begin with.

A reader gets a path and may do one of two things: read the file, or raise a SeDeployError.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import use_graphs
from msgspec.structs import replace
from onnx import helper, parser
from PIL import Image

from se_deploy import data, files, graph, options, schema, se_blocks
from se_deploy import report as pages
from se_deploy.backends import manifest as manifests
from se_deploy.backends.tensorrt import inspector, layer_log
from se_deploy.commands import gates, report
from se_deploy.passes import canonical, rewrites, search
from se_deploy.protocols import TensorSpec
from se_deploy.quantization import cache
from se_deploy.schema import input_spec
from se_deploy.schema.files import CalibratedTensor, CalibrationCache, Stamp
from se_deploy.signature import Feeding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Seeds = Callable[[], Sequence[bytes]]

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPEC = use_graphs.SPEC
VECTOR = TensorSpec("x", np.dtype(np.float32), (None, 3))
STAMP = Stamp(
    onnx_sha256="0", data_sha256="1", samples=4, policy="portable", method="auto", options="", version="1"
)


@dataclass(frozen=True, slots=True)
class Reader:
    """One way in: the name that the file gets, good files, what reads them, and which mutations fit."""

    name: str
    file: str
    seeds: Seeds
    read: Callable[[Path], Any]
    form: str = "bytes"  # or what mutations.STRUCTURED changes by its structure
    needs_torch: bool = False
    names_file: bool = True  # whether an error must name the file: not where the caller has no path


# Arrays, images and lists


def _idx(shape: tuple[int, ...]) -> bytes:
    head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + bytes(int(np.prod(shape)))


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(12, dtype=np.float32).reshape(4, 3))
    return out.getvalue()


def _npz(**more: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.arange(12, dtype=np.float32).reshape(4, 3), **more)
    return out.getvalue()


def _compressed() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, x=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64))
    return out.getvalue()


def image(form: str, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> bytes:
    """A picture in one of Pillow's formats."""
    out = io.BytesIO()
    Image.effect_noise(size, 40).convert(mode).save(out, form)
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("0.png", image("PNG")), ("0.cls", b"1"), ("ü/1.jpg", image("JPEG"))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _wave() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(64))
    return out.getvalue()


def _waves(path: Path) -> None:
    samples = data.read(path, [TensorSpec("x", np.dtype(np.float32), (None, None))])
    for _ in samples.batches(2):
        pass


def _cifar() -> bytes:
    return bytes([3]) + bytes(3072) + bytes([1]) + bytes(3072)


def _images(path: Path) -> None:
    samples = data.read(path, [SPEC])
    for _ in samples.batches(2):
        pass


def _arrays(path: Path) -> None:
    samples = data.read(path, [VECTOR])
    for _ in samples.batches(2):
        pass


def _beside(path: Path) -> None:
    """A list whose first good line names an image that is there."""
    (path.parent / "a.png").write_bytes(image("PNG"))
    _images(path)


def _labels_beside(path: Path) -> None:
    """IDX labels, read because of the images beside them."""
    images = path.with_name("t-images-idx3-ubyte")
    images.write_bytes(_idx((2, 8, 8)))
    _images(images)


def _grey(path: Path) -> None:
    samples = data.read(path, [replace(SPEC, channels=1, mean=(0.0,), std=(1.0,))])
    for _ in samples.batches(2):
        pass


# ONNX


_FUNCTIONS = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
g (float[N,3,8,8] x) => (float[N,3,1,1] y) { y = own.twice(x) }
<domain: "own", opset_import: ["" : 17, "own" : 1]> twice (a) => (c) { b = own.once(a) c = own.once(b) }
<domain: "own", opset_import: ["" : 17]> once (a) => (b) { b = ReduceMean<axes = [2, 3]>(a) }
"""
_ODD = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,8,8,3] y, float[N,3,8,8] z)
<float zero = {0.0}, float many = {5.0}, float one = {1.0}, int64[2] size = {2, 3}, bool yes = {1},
 int64[4] grid = {0, 3, -1, 8}, float[3] s = {1.0, 2.0, 3.0}> {
    r = Range(zero, many, one)
    k = ReduceMax<keepdims = 0>(r)
    one1 = Constant<value_floats = [1.0]>()
    size1 = Constant<value_ints = [4]>()
    t = Tile(one1, size1)
    m = ReduceSum<keepdims = 0>(t)
    a = Add(x, k)
    b = Mul(a, m)
    i = If (yes) <then_branch = th () => (float[N,3,8,8] p) { p = Relu(b) },
                  else_branch = el () => (float[N,3,8,8] q) { q = Neg(b) }>
    h = Reshape(i, grid)
    z = Clip(h, zero, many)
    y = Transpose<perm = [0, 2, 3, 1]>(b)
}"""


def _se_onnx() -> bytes:
    return graph.to_bytes(use_graphs.model(use_graphs.SE))


def _quantized() -> bytes:
    text = """<ir_version: 10, opset_import: ["" : 19]> g (float[N,3,4,4] x) => (float[N,2,4,4] y)
    <float s = {0.1}, int8 z = {0}, float[2,3,1,1] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        wq = QuantizeLinear(w, s, z) wd = DequantizeLinear(wq, s, z) y = Conv(d, wd) }"""
    return parser.parse_model(text).SerializeToString()


def _external() -> bytes:
    weights = helper.make_tensor("w", onnx.TensorProto.FLOAT, [3], bytes(12), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "12")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    made = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) { y = Add(x, w) }'
    )
    made.graph.initializer.append(weights)
    return made.SerializeToString()


def _onnx(path: Path) -> None:
    """Everything that is done to a graph before anything is run."""
    (path.parent / "w.bin").write_bytes(bytes(64))
    model = graph.load(path)
    input_spec.read(model.metadata_props)
    form = canonical.canonicalize(model).model
    blocks = se_blocks.detect(form).se
    sites = [rewriter.sites(form, blocks) for rewriter in rewrites.rewriters()]
    assert sites is not None
    graph.to_bytes(form)


# JSON, TOML and text


def _json(value: Any) -> bytes:
    return schema.encode(value).encode()


def _manifest() -> bytes:
    made = use_graphs.manifest(FIXTURES / "README.md", FIXTURES / "README.md")
    return _json(made)


def _cache() -> bytes:
    entry = CalibratedTensor(
        scale=0.1, low=-1.0, high=1.0, offset=(0.0, 0.1), divisor=(1.0, 2.0), residual=False,
        mean=(0.0, 0.0), variance=(1.0, 1.0),
    )  # fmt: skip
    return _json(CalibrationCache(stamp=STAMP, method="mse", noise={"c": 0.1}, tensors={"x": entry}))


def _run() -> bytes:
    from report import sample  # noqa: PLC0415 - its graphs are built when it is imported

    return _json(sample.report())


def _metadata(path: Path) -> None:
    input_spec.read({input_spec.METADATA_KEY: path.read_text("utf-8", errors="surrogateescape")})


def _spec() -> bytes:
    return _json(replace(SPEC, resize_size=(9, 9), rounding="nearest"))


def _replay(path: Path) -> None:
    search.from_json(files.read_text(path), name=f"'{path}'")


def _inspector(path: Path) -> None:
    text = path.read_text("utf-8", errors="surrogateescape")
    inspector.plan_from_inspector(text, version="10", target="sm87")


def _inspectors() -> Sequence[bytes]:
    return [(FIXTURES / f"inspector_{v}.json").read_bytes() for v in ("8_6", "10", "11")]


def _report(path: Path) -> None:
    """Read a run's report, and write what `report` makes of it."""
    made = report.report([path.parent])
    schema.encode(made)
    pages.compare_html([("out", made.runs[0])])


def _plan() -> bytes:
    return schema.encode(
        inspector.plan_from_inspector(_inspectors()[1].decode(), version="10", target="sm87")
    ).encode()


def _saved_plan(path: Path) -> None:
    from se_deploy.errors import BadInput  # noqa: PLC0415
    from se_deploy.plan import Plan as Kernels  # noqa: PLC0415

    schema.load(path, Kernels, what="a saved plan", error=BadInput, hint="delete the file to plan again")


_LAYERS = (
    b"Layers:\nName: a + b, LayerType: Convolution, Inputs: [ { Name: x, Dimensions: [1,3,8,8], "
    b"Format/Datatype: Half, Datatype: Half }], Constants: [], "
    b"Outputs: [ { Name: y, Dimensions: [1,8,8,8], Datatype: Half }], "
    b"TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a][ONNX Layer: b]\n"
)

_CONFIG = b"""[parity]
reference = "timm:seresnet50"
candidates = ["net.onnx"]
data = "photos"
atol = {"*" = 0.1}
model_args = {num_classes = 10}
[[fusion]]
files = ["net.onnx"]
target = "sm86"
[precision]
files = {"net.engine" = "fp16"}
[latency]
files = ["net.onnx"]
max_p50_ms = 3.5
"""


# What needs torch


def _checkpoint() -> Sequence[bytes]:
    import torch  # noqa: PLC0415

    out, nested = io.BytesIO(), io.BytesIO()
    torch.save(_module().state_dict(), out)
    torch.save({"state_dict": _module().state_dict(), "epoch": 3}, nested)
    return [out.getvalue(), nested.getvalue()]


def _module() -> Any:
    from torch import nn  # noqa: PLC0415

    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def _weights(path: Path) -> None:
    from se_deploy.frontend import checkpoints  # noqa: PLC0415

    checkpoints.load(_module(), path)


def _safetensors() -> Sequence[bytes]:
    from safetensors.torch import save  # noqa: PLC0415

    return [save(dict(_module().state_dict()))]


def _program() -> Sequence[bytes]:
    import torch  # noqa: PLC0415

    out = io.BytesIO()
    torch.export.save(torch.export.export(_module().eval(), (torch.zeros(2, 3, 4, 4),)), out)
    return [out.getvalue()]


def _read_program(path: Path) -> None:
    from se_deploy.frontend import zoo  # noqa: PLC0415

    zoo.load(str(path))


def _example(path: Path) -> None:
    from se_deploy.frontend import examples  # noqa: PLC0415

    examples.examples_of(_module(), "spec", Feeding(example=path), None, 0)


READERS = (
    Reader("idx-images", "t-images-idx3-ubyte", lambda: [_idx((2, 8, 8)), _idx((1, 4, 4, 3))], _grey),
    Reader("idx-gzip", "t-images-idx3-ubyte.gz", lambda: [gzip.compress(_idx((2, 8, 8)))], _grey, "gzip"),
    Reader("idx-labels", "t-labels-idx1-ubyte", lambda: [_idx((2,))], _labels_beside),
    Reader("npy", "a.npy", lambda: [_npy()], _arrays),
    Reader(
        "npz", "a.npz", lambda: [_npz(), _npz(labels=np.zeros(4, np.int64)), _compressed()], _arrays, "zip"
    ),
    Reader("tar", "a.tar", lambda: [_tar()], _images, "tar"),
    Reader("wave", "a.wav", lambda: [_wave()], _waves),
    Reader("cifar", "data_batch_1.bin", lambda: [_cifar()], _images),
    Reader("list", "a.txt", lambda: [b"a.png 3\n# no\na.png\tred\n", b"a.png,2\r\n\n"], _beside, "text"),
    Reader(
        "png",
        "a.png",
        lambda: [image("PNG"), image("PNG", mode="P"), image("PNG", mode="1"), image("PNG", mode="RGBA")],
        _images,
        "png",
    ),
    Reader("jpeg", "a.jpg", lambda: [image("JPEG"), image("JPEG", mode="CMYK")], _images),
    Reader("webp", "a.webp", lambda: [image("WEBP")], _images),
    Reader(
        "tiff", "a.tif", lambda: [image("TIFF"), image("TIFF", mode="F"), image("TIFF", mode="L")], _images
    ),
    Reader("gif", "a.gif", lambda: [image("GIF")], _images),
    Reader("bmp", "a.bmp", lambda: [image("BMP"), image("BMP", mode="1")], _images),
    Reader(
        "ppm", "a.ppm", lambda: [image("PPM"), image("PPM", mode="L"), b"P3\n2 1 255\n1 2 3 4 5 6\n"], _images
    ),
    Reader(
        "other-picture",  # what Pillow opens by content, whatever the name says
        "b.png",
        lambda: [image(f) for f in ("DDS", "AVIF", "JPEG2000", "PCX", "TGA", "SGI", "ICNS", "ICO", "PDF")],
        _images,
    ),
    Reader(
        "onnx",
        "a.onnx",
        lambda: [
            _se_onnx(),
            parser.parse_model(_FUNCTIONS).SerializeToString(),
            parser.parse_model(_ODD).SerializeToString(),
            _quantized(),
            _external(),
        ],
        _onnx,
        "onnx",
    ),
    Reader("operators", "a.onnx", lambda: [parser.parse_model(_ODD).SerializeToString()], _onnx, "operators"),
    Reader("input-spec", "spec.json", lambda: [_spec()], _metadata, "json", names_file=False),
    Reader(
        "manifest",
        "e.engine.json",
        lambda: [_manifest()],
        lambda p: manifests.read(p.with_suffix("")),
        "json",
    ),
    Reader("calibration-cache", "cache.json", lambda: [_cache()], lambda p: cache.read(p, STAMP), "json"),
    Reader("report", "report.json", lambda: [_run()], _report, "json"),
    Reader(
        "rewrites",
        "r.json",
        lambda: [search.to_json([search.Choice(rewrites.names()[0], "x")]).encode()],
        _replay,
        "json",
    ),
    Reader("inspector", "i.json", _inspectors, _inspector, "json", names_file=False),
    Reader("saved-plan", "p.json", lambda: [_plan()], _saved_plan, "json"),
    Reader(
        "layer-log",
        "log.txt",
        lambda: [_LAYERS],
        lambda p: layer_log.parse_layers(p.read_text("utf-8", "replace")),
        "text",
        names_file=False,
    ),
    Reader("labels", "labels.txt", lambda: [b"red\ngreen\n"], options.read_labels, "text"),
    Reader("labels-as-json", "labels.json", lambda: [b'["red", "green"]'], options.read_labels, "json"),
    Reader("configuration", "se-deploy.toml", lambda: [_CONFIG], gates.read, "toml"),
    Reader("checkpoint", "c.pth", _checkpoint, _weights, "zip", needs_torch=True),
    Reader("safetensors", "c.safetensors", _safetensors, _weights, needs_torch=True),
    Reader("program", "p.pt2", _program, _read_program, "zip", needs_torch=True),
    Reader("example", "e.npz", lambda: [_npz()], _example, "zip", needs_torch=True),
)
BY_NAME = {reader.name: reader for reader in READERS}
