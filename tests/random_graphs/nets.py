"""Random small networks with SE blocks in every spelling that the census knows, and what is true of them.

`drawn` writes one network: a stem, a few stages, a head. Each stage adds a block from a random `Recipe`, a
look-alike, or a site that some rewrite is about. The generator knows which Muls are blocks and what the
census must say of each; nothing here asks the code under test.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from look_alikes import KIN, MORE_KIN, NEITHER
from onnx import helper, numpy_helper, parser
from se_graphs import (
    ACTIVATIONS,
    CONSTANTS,
    EXPANDS,
    EXTRAS,
    GATES,
    LAYERS,
    NORMS,
    OF_KNOWN_SIZE,
    SOURCES,
    SQUEEZES,
    UNUSUAL,
    WEIGHTS,
    Net,
    Recipe,
    expectation,
    write,
)

SPATIAL = {
    1: ((7,), (12,), (1,)),
    2: ((1, 1), (6, 6), (6, 6), (8, 6), (7, 5), (5, 1), (4, 4), (3, 3), (2, 7), (10, 12)),
    3: ((2, 3, 4), (1, 1, 1), (4, 4, 2)),
}
RANKS = (1, 2, 2, 2, 2, 2, 2, 2, 2, 3)
OPSETS = (11, 13, 14, 15, 16, 17, 17, 17, 18, 20, 21)
TEXT_OPSETS = range(13, 18)  # of the graphs written as text: axes of ReduceMean are attributes up to 17
SCALES = {"usual": (1.0,), "huge": (1.0, 1.0, 1e3, 3e4), "tiny": (1.0, 1.0, 1e-3, 1e-7)}
SIZES = ("usual", "usual", "usual", "usual", "usual", "usual", "huge", "tiny")
BATCHES = ("N", "N", "N", 1, 1, 2)
ROWS = (1, 2, 3, 4, 8)  # of what is fed to a free batch: as many as some layer has channels, too
END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Map:
    """A tensor (N, channels, *spatial) of the network as it is being written."""

    name: str
    channels: int
    spatial: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """A network and what is true of it."""

    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    blocks: dict[str, dict[str, object]]  # what the census must say of each SE block, by its output
    kin: Counter[str]  # how many blocks there are of each other kind of pooled attention
    scale: str  # of the weights: a key of SCALES
    stages: tuple[str, ...]


class _Net(Net):
    """A graph being written whose weights are scaled, hold idle units or are those of another part."""

    def __init__(self, recipe, rng, scale):
        super().__init__(recipe)
        self.rng, self.scale = rng, scale
        self.idle = False
        self.shared: list[str] | None = None  # weights to take in place of new ones
        self.made: list[str] = []

    def weight(self, *shape, spread=1.0):
        if self.shared is not None:
            return self.shared.pop(0)
        fan_in = math.prod(shape[1:]) or 1
        array = self.rng.standard_normal(shape) * spread / math.sqrt(fan_in)
        if self.idle and len(shape) > 1:
            along = tuple(self.rng.integers(0, [shape[0], shape[1]]))
            how = self.rng.integers(3)
            if how == 0:
                array[along[0]] = 0
            elif how == 1:
                array[:, along[1]] = 0
            else:
                array[along[0]] = -np.abs(array[along[0]])
        elif self.idle:
            array = -np.abs(array)
        name = self.const((array * self.rng.choice(SCALES[self.scale])).astype(np.float32))
        self.made.append(name)
        return name


def drawn(seed: int, number: int) -> Drawn:
    """Draw the network `number` of `seed`; the same two give the same network."""
    return _Drawer(np.random.default_rng([seed, number])).drawn()


@dataclass
class _Drawer:
    rng: np.random.Generator
    blocks: dict[str, dict[str, object]] = field(default_factory=dict)
    kin: Counter[str] = field(default_factory=Counter)
    outputs: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    last: tuple[Recipe, list[str]] | None = None  # the block before, whose weights may be used again

    def one(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share):
        return self.rng.random() < share

    def drawn(self) -> Drawn:
        rank = self.one(*RANKS)
        self.spatial = self.one(*SPATIAL[rank])
        self.free = self.chance(0.2)
        self.batch = self.one(*BATCHES)
        self.scale = self.one(*SIZES)
        base = Recipe(
            opset=self.one(*OPSETS),
            constants=self.one("initializer", "initializer", "node", "computed"),
            spatial=self.spatial,
        )
        self.net = _Net(base, self.rng, self.scale)
        self.base = base
        channels = self.one(3, 3, 1, 2, 4)
        x = Map("input", channels, self.spatial)
        if self.chance(0.3):
            x = self.stem(x)
        count = self.one(1, 2, 2, 3)
        for i in range(count):
            kinds = self.kinds(x) if i else ("block",)
            kind = self.one(*kinds)
            self.stages.append(kind)
            x = getattr(self, kind)(x)
        self.head(x)
        return Drawn(
            self.proto(channels), self.feeds(channels), self.blocks, self.kin, self.scale, (*self.stages,)
        )

    def kinds(self, x: Map) -> tuple[str, ...]:
        found = ["block"] * 4 + ["plain", "dense", "ghost", "joined_depthwise"]
        if len(x.spatial) == 2:
            found += ["added", "partly_added", *["projected"] * (3 if self.batch == 1 else 1)]
            if x.spatial == (6, 6) and not self.free and self.base.opset in TEXT_OPSETS:
                found += ["look_alike"] * 4
            if math.prod(x.spatial) > 1 and self.chance(0.3):
                found += ["wide"]
        return tuple(found)

    # ---- parts

    def conv(self, x: Map, o: int, *, kernel=1, stride=1, pads=None, dilation=1, group=1, bias=None) -> Map:
        rank = len(x.spatial)
        kernel = (kernel,) * rank if isinstance(kernel, int) else kernel
        pads = (0,) * 2 * rank if pads is None else pads
        given = [x.name, self.net.weight(o, x.channels // group, *kernel)]
        if self.chance(0.6) if bias is None else bias:
            given.append(self.net.weight(o))
        attributes = {"kernel_shape": kernel, "strides": [stride] * rank, "pads": list(pads)}
        attributes |= {"dilations": [dilation] * rank, "group": group}
        if kernel == (1,) * rank and stride == dilation == 1 and not any(pads) and self.chance(0.5):
            attributes = {"group": group}  # as exporters write it, and as they do not
        name = self.net.op("Conv", *given, **attributes)
        sizes = [
            (size + pads[i] + pads[i + rank] - dilation * (kernel[i] - 1) - 1) // stride + 1
            for i, size in enumerate(x.spatial)
        ]
        return Map(name, o, tuple(sizes))

    def same(self, x: Map, o: int, *, group=1) -> Map:
        """Convolve so that the size stays: 1x1, or an odd kernel with half of it as padding."""
        k = self.one(1, 1, 3, 5)
        if group > 1:
            k = 3
        return self.conv(x, o, kernel=k, pads=(k // 2,) * 2 * len(x.spatial), group=group)

    def depthwise(self, x: Map, *, stride=1) -> Map:
        pads = (1,) * 2 * len(x.spatial)
        return self.conv(x, x.channels, kernel=3, stride=stride, pads=pads, group=x.channels)

    def relu(self, x: Map) -> Map:
        return replace(x, name=self.net.op("Relu", x.name))

    def joined(self, *maps: Map) -> Map:
        name = self.net.op("Concat", *(m.name for m in maps), axis=1)
        return Map(name, sum(m.channels for m in maps), maps[0].spatial)

    def cut(self, x: Map, start: int, end: int, *, step=True) -> str:
        given = [self.net.ints(start), self.net.ints(end), self.net.ints(1)]
        given += [self.net.ints(1)] if step else []
        return self.net.op("Slice", x.name, *given)

    # ---- stages: a map comes in, a map goes out

    def stem(self, x: Map) -> Map:
        rank = len(x.spatial)
        k = self.one(*[k for k in (2, 3, 5, 7) if k <= min(x.spatial) + 2] or [1])
        pads = tuple(int(self.rng.integers(k // 2 + 1)) for _ in range(2 * rank))
        if any(size + pads[i] + pads[i + rank] < k for i, size in enumerate(x.spatial)):
            pads = (k,) * 2 * rank
        return self.relu(self.conv(x, self.one(4, 8), kernel=k, stride=2, pads=pads))

    def plain(self, x: Map) -> Map:
        rank = len(x.spatial)
        kernel = tuple(int(self.rng.integers(1, 5)) for _ in range(rank))
        pads = tuple(int(self.rng.integers(4)) for _ in range(2 * rank))
        dilation = self.one(1, 1, 2)
        reach = [dilation * (k - 1) + 1 for k in kernel]
        if any(size + pads[i] + pads[i + rank] < reach[i] for i, size in enumerate(x.spatial)):
            pads = tuple(reach) * 2
        group = self.one(*[g for g in (1, 2, x.channels) if x.channels % g == 0])
        o = group * self.one(1, 2, 3)
        y = self.conv(
            x, o, kernel=kernel, stride=self.one(1, 2, 3), pads=pads, dilation=dilation, group=group
        )
        if self.chance(0.3):
            y = replace(y, name=NORMS["batch"](self.net, y.name, o))
        return self.relu(y) if self.chance(0.6) else y

    def dense(self, x: Map) -> Map:
        y = self.joined(x, self.relu(self.same(x, self.one(2, 4))))
        stride = self.one(1, 2)
        z = self.conv(y, self.one(4, 6), stride=stride)
        if not self.chance(0.4):
            return z
        again = self.conv(y, z.channels, stride=stride)
        return replace(z, name=self.net.op("Add", z.name, again.name))

    def ghost(self, x: Map) -> Map:
        r = self.relu(self.same(x, self.one(2, 4)))
        d = self.depthwise(r)
        y = self.joined(r, self.relu(d) if self.chance(0.5) else d)
        return self.conv(y, self.one(4, 6)) if self.chance(0.5) else y

    def joined_depthwise(self, x: Map) -> Map:
        y = self.joined(x, self.relu(self.same(x, self.one(2, 4))))
        return self.depthwise(y, stride=self.one(1, 2))

    def added(self, x: Map) -> Map:
        stride, o = self.one(1, 1, 2, 3), self.one(4, 6)
        one = self.conv(self.relu(x), o, stride=stride)
        return replace(one, name=self.net.op("Add", one.name, self.conv(x, o, stride=stride).name))

    def partly_added(self, x: Map) -> Map:
        c = self.same(x, x.channels + self.one(1, 2, 3))
        if self.chance(0.5):
            c = self.block(c, ends=False)
        step = self.chance(0.5)
        head, tail = self.cut(c, 0, x.channels, step=step), self.cut(c, x.channels, self.one(END, c.channels))
        added = self.net.op("Add", *((head, x.name) if self.chance(0.5) else (x.name, head)))
        return replace(c, name=self.net.op("Concat", added, tail, axis=1))

    def wide(self, x: Map) -> Map:
        y = self.relu(self.conv(self.conv(x, 128), 256))
        return self.conv(y, 4)

    def block(self, x: Map, *, ends: bool = True) -> Map:
        """Add a block: its source, itself, what else reads its parts, and what follows where it `ends`."""
        if self.chance(0.15):
            x = replace(
                x, name=self.cut(x, 0, self.one(END, x.channels, x.channels + 2), step=self.chance(0.5))
            )
        source = self.one("convolution", "convolution", "convolution", "activation", "swish", "norm")
        data = x
        if source in {"convolution", "norm"} or x.channels == 1 or self.chance(0.7):
            o = self.one(2, 4, 6, 8) if ends else max(2, x.channels)
            data = self.depthwise(x) if self.chance(0.15) and x.channels > 1 else self.same(x, o)
        recipe, shared = self.recipe(data, source)
        self.net.recipe = recipe
        data = replace(data, name=SOURCES[source][1](self.net, data.name))
        self.net.made, self.net.shared = [], shared
        self.net.idle = shared is None and self.chance(0.25)
        made = write(self.net, data.name)
        weights, self.net.shared, self.net.idle = self.net.made, None, False
        self.net.recipe = self.base
        if shared is None:
            self.last = (recipe, weights)
        said = expectation(recipe)
        del said["placement"], said["followed_by"]
        self.blocks[made.scaled] = {**said, "scale_node": made.mul}
        if self.chance(0.2):
            self.outputs.append(self.one(made.squeezed, made.gate, made.scaled, data.name))
        y = replace(data, name=made.end)
        if self.chance(0.15):
            other = self.conv(x, data.channels)
            if other.spatial == y.spatial:
                gated = self.net.op("Mul", other.name, made.gate)
                y = replace(y, name=self.net.op("Add", y.name, gated))
        return self.tail(x, y) if ends else y

    def projected(self, x: Map) -> Map:
        """Add a block on a 1x1 convolution, and the projection of its shortcut."""
        data = self.conv(self.relu(x), self.one(4, 6))
        recipe, _ = self.recipe(data, "convolution")
        self.net.recipe = replace(
            recipe, squeeze="pool", layers="conv", norm="none", expand="none", residual=False
        )
        made = write(self.net, data.name)
        said = expectation(self.net.recipe)
        self.net.recipe = self.base
        del said["placement"], said["followed_by"]
        self.blocks[made.scaled] = {**said, "scale_node": made.mul}
        return self.relu(
            replace(data, name=self.net.op("Add", made.scaled, self.conv(x, data.channels).name))
        )

    def recipe(self, data: Map, source: str) -> tuple[Recipe, list[str] | None]:
        """Draw the spelling of a block on `data`; now and then that of the block before, with its weights."""
        at = {"channels": data.channels, "spatial": data.spatial}
        if self.last is not None and self.chance(0.5):
            known, weights = self.last
            if known.channels == data.channels and known.squeeze != "window":
                return replace(known, **at), list(weights)
        squeezes = [s for s in SQUEEZES if not (self.free and s in OF_KNOWN_SIZE)]
        activations = [a for a in ACTIVATIONS if self.base.opset >= 14 or a != "hardswish"]
        reduced = self.one(None, 1, 2, 4, 4, 5, 7, 8)
        layers = self.one("conv", "conv", *LAYERS)
        even = layers == "conv" and data.channels % 2 == 0 and reduced is not None and reduced % 2 == 0
        recipe = replace(
            self.base,
            **at,
            source=source,
            squeeze=self.one(*squeezes),
            layers=layers,
            norm=self.one("none", "none", "batch"),
            activation=self.one("relu", "relu", "relu", *activations),
            gate=self.one("sigmoid", "sigmoid", "sigmoid", *GATES),
            extra=self.one("none", "none", "none", *EXTRAS),
            expand=self.one("none", "none", *EXPANDS),
            gate_first=self.chance(0.3),
            residual=self.chance(0.15),
            reduced=reduced,
            groups=self.one(1, 1, 2) if even else 1,
            free_map=self.free,
            seed=int(self.rng.integers(100)),
        )
        return recipe, None

    def tail(self, x: Map, y: Map) -> Map:
        """Add what reads a block's output."""
        flat = len(y.spatial) == 2
        choices = ["none", "relu", "conv", "conv", "depthwise", "two"]
        if x.spatial == y.spatial:
            choices += ["project", "project"] if flat else []
            choices += ["add"] * 2 if x.channels == y.channels else []
        if min(y.spatial) > 1:
            choices += ["MaxPool", "AveragePool"]
        kind = self.one(*choices)
        if kind == "relu":
            return self.relu(y)
        if kind == "conv":
            return self.same(y, self.one(4, 6, 8))
        if kind == "depthwise":
            return self.depthwise(y, stride=self.one(1, 2))
        if kind == "two":
            one, other = self.conv(y, 4), self.conv(y, 4)
            return replace(one, name=self.net.op("Add", one.name, other.name))
        if kind == "add":
            return self.relu(replace(y, name=self.net.op("Add", y.name, x.name)))
        if kind == "project":
            return replace(y, name=self.net.op("Add", y.name, self.conv(x, y.channels).name))
        if kind in {"MaxPool", "AveragePool"}:
            return self.pooled(kind, y)
        return y

    def pooled(self, kind: str, y: Map) -> Map:
        k, stride, rank = self.one(2, 3) if min(y.spatial) > 2 else 2, self.one(1, 2), len(y.spatial)
        pads = [int(self.rng.integers(2))] * 2 * rank
        more = {"count_include_pad": int(self.rng.integers(2))} if kind == "AveragePool" else {}
        name = self.net.op(kind, y.name, kernel_shape=[k] * rank, strides=[stride] * rank, pads=pads, **more)
        return Map(name, y.channels, tuple((n + 2 * pads[0] - k) // stride + 1 for n in y.spatial))

    def look_alike(self, x: Map) -> Map:
        """Add one of the graphs written as text beside the network, its end an output."""
        m = self.conv(x, 4)
        group = self.one("block", "block", "kin", "neither")
        if group == "block":
            body = UNUSUAL[self.one(*(n for n in UNUSUAL if n != "quantized"))]
        elif group == "kin":
            kinds = [*KIN.items(), *MORE_KIN.values()]
            kind, body = self.one(*kinds)
            self.kin[kind] += 1
        else:
            body = self.one(*NEITHER.values())
        nodes = self.embedded(body, m)
        self.outputs.append(nodes[-1].output[0])
        if group == "block":
            mul = [node for node in nodes if node.op_type == "Mul"][-1]
            self.blocks[mul.output[0]] = {"kind": "se", "channels": 4, "scale_node": mul.name}
        return x

    def embedded(self, body: str, x: Map) -> list[onnx.NodeProto]:
        text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,6,6] x) => (float[N,M,K,L] y)'
        parsed = parser.parse_model(f"{text} <{CONSTANTS}> {{ {body} }}").graph
        constants = {tensor.name: tensor for tensor in parsed.initializer}
        prefix = f"e{self.net.count}_"
        known = {"x": x.name, "": ""}
        for node in parsed.node:
            for name in node.input:
                if name in known:
                    continue
                if name in WEIGHTS:
                    known[name] = self.net.weight(*WEIGHTS[name])
                elif name in constants:
                    known[name] = self.net.const(numpy_helper.to_array(constants[name]))
            taken = [known[name] for name in node.input]
            known |= {name: prefix + name for name in node.output}
            node.name = f"{prefix}n{len(self.net.nodes)}"
            node.input[:] = taken
            node.output[:] = [known[name] for name in node.output]
            self.net.nodes.append(node)
        return list(parsed.node)

    # ---- the whole

    def head(self, x: Map) -> None:
        if self.chance(0.4):
            flat = self.net.op("Flatten", self.net.op("GlobalAveragePool", x.name))
            y = self.net.op("Gemm", flat, self.net.weight(5, x.channels), self.net.weight(5), transB=1)
        else:
            y = x.name
        self.net.nodes.append(helper.make_node("Identity", [y], ["output"], name="out"))
        self.outputs.append("output")

    def proto(self, channels: int) -> onnx.ModelProto:
        sizes = list("HWD"[: len(self.spatial)]) if self.free else self.spatial
        given = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [self.batch, channels, *sizes])
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in dict.fromkeys(self.outputs)
        ]
        made = helper.make_graph(self.net.nodes, "g", [given], ends, self.net.initializers)
        opsets = [helper.make_opsetid("", self.base.opset)]
        return helper.make_model(made, opset_imports=opsets, ir_version=8)

    def feeds(self, channels: int) -> dict[str, np.ndarray]:
        rows = self.batch if isinstance(self.batch, int) else self.one(*ROWS)
        x = self.rng.standard_normal((rows, channels, *self.spatial))
        if rows > 2:
            x[1] *= 10
            x[2] = 0
        return {"input": x.astype(np.float32)}
