"""A random network through every step, and what came of it: nothing, or findings.

The numbers of a step are compared with those of the network as it was drawn, by ONNX Runtime node by node. A
step that claims exactness may differ by what rounding makes; where rounding alone moves the answers further,
which is measured by changing every input and weight in its last bits, that movement is the limit.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from se_graphs import read, run

from se_deploy import fusion, graph, quantization, se_blocks
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.commands.shapes import SizedPlanner
from se_deploy.data import Samples
from se_deploy.errors import BuildFailed, UnsupportedGraph
from se_deploy.fusion import FusionRules
from se_deploy.passes import canonical, rewrites, search
from se_deploy.quantization import QuantizeOptions, fp16_ranges, fp16_rounding, to_fp16
from se_deploy.quantization.without_qdq import without_qdq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from random_graphs.nets import Drawn
    from se_deploy.protocols import Array, Planner

RUNTIME = OrtRuntime(threads=1, optimize=False)
EXACT = 2e-5
"""Largest error over an output's largest magnitude: the same FP32 sums in another order, in few layers."""
HALF = 2e-2
"""The same of FP16: 11 bits, a few layers deep."""
ROUNDINGS = 32
"""How much more than one change in the last bits the roundings of all layers together may move an answer."""
FP32_BITS, FP16_BITS = 2.0**-23, 2.0**-11
SAMPLES = 8
PTQ = QuantizeOptions(method="mse", gptq=False, float_macs=0.0)
WEIGHTS_DB = 20.0
"""Least ratio of signal to noise with every weight rounded to 8 bits and nothing else, usually 40 dB.

Biases are corrected for rounded activations, which are missing there: INT8 itself may be the better one."""
INT8_DB = 8.0
"""The same with activations in INT8, usually 25 dB; a wrong padding, offset or scale leaves less than 0."""
SMALL = 0.1
"""Root mean square of an output below which INT8 is not asked: a sum that comes to next to nothing, behind a
Relu that gives almost all 0, is small against its own terms, whose rounding stays."""
SHAKES = 32  # of every input and weight: a gate between two large numbers turns over in some of them
SUBSETS = 2  # of the rewrites, each applied together wherever it is possible
TAKERS = ("gate-into-previous", "gate-into-next", "gate-into-next-batched")
"""They take a gate away from rewrites that come later: half of the subsets do without them."""


@dataclass
class Outcome:
    """What the steps of one network found, and how often each rewrite fired and each step ran."""

    findings: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)


class Steps:
    """One network on its way through the steps."""

    def __init__(
        self, drawn: Drawn, rng: np.random.Generator, planner: Planner | None = None, *, exact: bool = False
    ) -> None:
        """`planner`: a compiler, asked for this network too; `exact`: no step that lowers the precision."""
        self.drawn, self.rng, self.planner, self.only_exact = drawn, rng, planner, exact
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run all of them."""
        self.model = read(self.drawn.proto)
        self.want = run(self.model, *self.drawn.feeds.values())
        self.census()
        if not all(np.isfinite(array).all() for array in self.want):
            self.outcome.ran["not finite"] += 1
            return self.outcome
        form = self.canonical()
        rewritten = self.rewrites(form)
        if self.only_exact:
            return self.outcome
        chosen = rewritten[int(self.rng.integers(len(rewritten)))]
        half = self.fp16(chosen)
        self.int8(form)
        if self.planner is not None:
            self.plan(chosen, half, self.planner)
        return self.outcome

    def wrong(self, step: str, what: str) -> None:
        self.outcome.findings.append(f"{step}: {what}")

    # ---- the census against what is true

    def census(self) -> None:
        self.outcome.ran["census"] += 1
        found = se_blocks.detect(self.model)
        blocks = {block.output: block for block in found.se}
        for output in self.drawn.blocks.keys() - blocks.keys():
            self.wrong("census", f"misses the block '{output}'")
        for output in blocks.keys() - self.drawn.blocks.keys():
            self.wrong("census", f"'{output}' is no block")
        for output in self.drawn.blocks.keys() & blocks.keys():
            said = {name: getattr(blocks[output], name) for name in self.drawn.blocks[output]}
            if said != self.drawn.blocks[output]:
                self.wrong("census", f"of '{output}' {said}, not {self.drawn.blocks[output]}")
        kin = Counter(block.kind for block in found.blocks if block.output not in blocks)
        if kin != self.drawn.kin:
            self.wrong("census", f"kin {dict(kin)}, not {dict(self.drawn.kin)}")

    # ---- steps that claim exactness

    def canonical(self) -> ir.Model:
        self.outcome.ran["canonical form"] += 1
        made = canonical.canonicalize(self.model)
        self.exact("canonical form", made.model)
        fired = [name for name, count in canonical.canonicalize(made.model).counts if count]
        if fired:
            self.wrong("canonical form", f"a second time it still changes: {', '.join(fired)}")
        before = {b.output: (b.kind, b.gate, b.gain) for b in se_blocks.detect(self.model).se}
        after = {b.output: (b.kind, b.gate, b.gain) for b in se_blocks.detect(made.model).se}
        if before != after:
            self.wrong("canonical form", f"blocks {before} became {after}")
        return made.model

    def rewrites(self, form: ir.Model) -> list[ir.Model]:
        """Apply random choices of rewrites, each wherever it is possible."""
        blocks = se_blocks.detect(form).se
        made = [form]
        for _ in range(SUBSETS):
            share = self.rng.choice([0.3, 0.6, 1.0])
            barred = TAKERS if self.rng.random() < 0.5 else ()
            names = [n for n in rewrites.names() if n not in barred and self.rng.random() < share]
            choices = self.everywhere(form, blocks, names)
            if not choices:
                continue
            self.outcome.ran["rewrites"] += 1
            done = search.replay(form, blocks, choices)
            self.outcome.fired.update(choice.rewrite for choice in done.applied)
            lost = set(choices) - set(done.applied)
            if lost:
                self.wrong("rewrites", f"{lost} do not apply when they are replayed")
            step = f"rewrites {', '.join(f'{c.rewrite} at {c.site}' for c in choices)}"
            if self.exact(step, done.model):
                made.append(done.model)
        return made

    @staticmethod
    def everywhere(form: ir.Model, blocks: Sequence[se_blocks.SEBlock], names: Sequence[str]):
        """Choose every site where one of `names` is possible after those before it, if it pays or not."""
        chosen: list[search.Choice] = []
        now = form
        for rewriter in rewrites.rewriters():
            if rewriter.name not in names:
                continue
            more = [search.Choice(rewriter.name, s.name) for s in rewriter.sites(now, blocks)]
            if more:
                chosen += more
                now = search.replay(now, blocks, more).model
        return chosen

    def exact(self, step: str, model: ir.Model) -> bool:
        """Check a graph by the specification, and its answers."""
        try:
            graph.check(model)
            got = run(model, *self.drawn.feeds.values())
        except Exception as e:  # noqa: BLE001 - whatever a broken graph makes them raise is the finding
            self.wrong(step, f"{type(e).__name__}: {str(e)[:300]}")
            return False
        return self.near(step, self.want, got, EXACT, FP32_BITS)

    def near(self, step: str, want: Sequence[Array], got: Sequence[Array], share: float, bits: float) -> bool:
        """Hold answers to a share of each output's magnitude, or to what rounding to `bits` may move."""
        moved: list[float] | None = None
        for i, (one, other) in enumerate(zip(want, got, strict=True)):
            if one.shape != other.shape:
                self.wrong(step, f"output {i} has shape {other.shape}, not {one.shape}")
                return False
            reach = float(np.abs(one).max(initial=0))
            error = float(np.abs(one.astype(np.float64) - other).max(initial=0))
            if error <= share * reach:
                continue
            moved = moved or self.moved(bits)
            if not error <= ROUNDINGS * moved[i]:
                self.wrong(
                    step, f"output {i} is off by {error:.3g} of {reach:.3g}, rounding moves {moved[i]:.3g}"
                )
                return False
        return True

    def moved(self, bits: float) -> list[float]:
        """Measure how far changes of `bits` in every input and weight move each output."""
        worst = [0.0] * len(self.want)
        for seed in range(SHAKES):
            rng = np.random.default_rng(seed)
            copy = self.model.clone()
            for value in copy.graph.initializers.values():
                if value.dtype == ir.DataType.FLOAT:
                    value.const_value = ir.tensor(_shaken(value.const_value.numpy(), bits, rng))
            feeds = [_shaken(array, bits, rng) for array in self.drawn.feeds.values()]
            for i, (one, other) in enumerate(zip(self.want, run(copy, *feeds), strict=True)):
                worst[i] = max(worst[i], float(np.abs(one.astype(np.float64) - other).max(initial=0)))
        return worst

    # ---- steps that lower the precision

    def fp16(self, model: ir.Model) -> ir.Model | None:
        self.outcome.ran["FP16"] += 1
        ranges = fp16_ranges.measure(model, [self.drawn.feeds], RUNTIME)
        done = to_fp16(model, ranges=ranges)
        graph.check(done.model)
        got = run(fp16_rounding.evaluation(done.model).model, *self.drawn.feeds.values())
        if any("rounds to 0" in warning or "cannot reach" in warning for warning in done.warnings):
            self.outcome.ran["FP16 that warns of its constants"] += 1
            if not all(np.isfinite(array).all() for array in got):
                self.wrong("FP16", "not finite")
            return None
        return done.model if self.near("FP16", self.want, got, HALF, FP16_BITS) else None

    def int8(self, form: ir.Model) -> None:
        try:
            made = quantization.quantize(form, self.samples(), runtime=RUNTIME, options=PTQ)
        except UnsupportedGraph:
            self.outcome.ran["nothing to quantize"] += 1
            return
        self.outcome.ran["INT8"] += 1
        graph.check(made.model)
        got = run(made.model, *self.drawn.feeds.values())
        floats = run(without_qdq(made.model), *self.drawn.feeds.values())
        for i, (one, other, rounded) in enumerate(zip(self.want, got, floats, strict=True)):
            if float(np.square(one, dtype=np.float64).mean()) < SMALL**2:
                self.outcome.ran["outputs too small for INT8"] += 1
            elif not np.isfinite(other).all():
                self.wrong("INT8", f"output {i} is not finite")
            elif self.drawn.scale == "usual" and (db := _db(one, rounded)) < WEIGHTS_DB > _db(one, other):
                self.wrong("INT8", f"output {i} has {db:.1f} dB with its weights rounded alone")
            elif self.drawn.scale == "usual" and (db := _db(one, other)) < INT8_DB:
                self.wrong("INT8", f"output {i} has {db:.1f} dB")

    def samples(self) -> Samples:
        """Draw calibration samples: what is fed, and more noise."""
        (given,) = self.drawn.feeds.values()
        more = self.rng.standard_normal((max(0, SAMPLES - len(given)), *given.shape[1:])).astype(np.float32)
        return Samples(_Memory(np.concatenate([given, more])), tuple(range(SAMPLES)), None, "")

    def plan(self, model: ir.Model, half: ir.Model | None, planner: Planner) -> None:
        """Let the compiler plan the graph and its FP16 form: verdicts on blocks, numbers where it rounds."""
        planner = SizedPlanner(planner, {name: array.shape for name, array in self.drawn.feeds.items()})
        for precision, one in (("FP32", model), ("FP16", half)):
            if one is None:
                continue
            try:
                planned = planner.plan(one)
            except BuildFailed as e:
                self.outcome.ran[f"refused by the compiler: {e.message.splitlines()[0][:80]}"] += 1
                continue
            self.outcome.ran[f"plan in {precision}"] += 1
            blocks = se_blocks.detect(model).se
            for verdict in fusion.verdicts(planned, blocks, one, FusionRules()):
                self.outcome.ran[verdict.verdict] += 1
                if verdict.verdict != "fused" and not verdict.reasons:
                    self.wrong("plan", f"'{verdict.output}' is {verdict.verdict} without a reason")
            if precision == "FP16":
                rounded = fp16_rounding.evaluation(one, planned)
                self.near("plan", self.want, run(rounded.model, *self.drawn.feeds.values()), HALF, FP16_BITS)


@dataclass(frozen=True)
class _Memory:
    """Samples of one input."""

    array: Array

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        return {"input": self.array[list(numbers)]}


def _shaken(array: Array, bits: float, rng: np.random.Generator) -> Array:
    return (array * (1 + bits * rng.uniform(-1, 1, array.shape))).astype(array.dtype)


def _db(want: Array, got: Array) -> float:
    """Return the ratio of signal to noise; infinite where there is neither."""
    noise = float(((want.astype(np.float64) - got) ** 2).mean())
    signal = float((want.astype(np.float64) ** 2).mean())
    return math.inf if not noise else 10 * math.log10(max(signal, 1e-30) / noise)
