"""Graphs that look like SE blocks: their kin, which the census names, and what is neither; see se_graphs."""

from __future__ import annotations

from se_graphs import GATE

KIN = {
    "eca": """p = GlobalAveragePool(x) v = Reshape(p, row) a = Conv<pads = [1, 1]>(v, along) s = Sigmoid(a)
        g = Reshape(s, map) y = Mul(x, g)""",
    "cbam-channel": """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2)
        q = GlobalMaxPool(x) e = Conv(q, w1) f = Relu(e) h = Conv(f, w2) u = Add(c, h) g = Sigmoid(u)
        y = Mul(x, g)""",
    "scse": f"""p = GlobalAveragePool(x) {GATE} z = Mul(x, g) s = Conv(x, point) t = Sigmoid(s) u = Mul(x, t)
        y = Add(z, u)""",
    "dynamic-relu": """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, twice) s = Sigmoid(c)
        h, k = Split<axis = 1>(s) z = Mul(x, h) y = Add(z, k)""",
    "split-attention": """v = Reshape(x, branches) u = ReduceSum<keepdims = 0>(v, first)
        p = ReduceMean<axes = [2, 3]>(u)
        a = Conv(p, half1) r = Relu(a) c = Conv(r, half2) d = Reshape(c, stack) s = Softmax<axis = 1>(d)
        g = Reshape(s, wide) z = Mul(v, g) y = ReduceSum<keepdims = 0>(z, first)""",
}
MORE_KIN = {
    "eca, padded with its own ends": (
        "eca",
        """p = GlobalAveragePool(x) v = Reshape(p, row) l, m = Split<axis = 2>(v, three_one)
        h, k = Split<axis = 2>(v, one_three) c = Concat<axis = 2>(m, v, h) a = Conv(c, along) s = Sigmoid(a)
        g = Reshape(s, map) y = Mul(x, g)""",
    ),
    "eca, padded with zeros": (
        "eca",
        """p = GlobalAveragePool(x) v = Reshape(p, row) c = Pad(v, ends) a = Conv(c, along) s = Sigmoid(a)
        g = Reshape(s, map) y = Mul(x, g)""",
    ),
    "mean beside maximum": (
        "cbam-channel",
        """p = GlobalAveragePool(x) q = GlobalMaxPool(x) c = Concat<axis = 1>(p, q) a = Conv(c, stack1)
        g = Sigmoid(a) y = Mul(x, g)""",
    ),
    "pooled by attention": (
        "gc",
        """s = Conv(x, point) t = Reshape(s, line) w = Softmax<axis = 2>(t) e = Unsqueeze(w, last)
        f = Reshape(x, rows) h = Unsqueeze(f, first) m = MatMul(h, e) p = Reshape(m, map)
        a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)""",
    ),
    "two stacked kernels": (
        "sk",
        """h = Relu(x) i = Unsqueeze(x, first) j = Unsqueeze(h, first) v = Concat<axis = 1>(i, j)
        u = ReduceSum<keepdims = 0>(v, first) p = ReduceMean<axes = [2, 3]>(u) a = Conv(p, w1) r = Relu(a)
        c = Conv(r, twice) d = Reshape(c, kernels) s = Softmax<axis = 1>(d) z = Mul(v, s)
        y = ReduceSum<keepdims = 0>(z, first)""",
    ),
    "a softmax over the channels": (
        "channel-softmax",
        "p = GlobalAveragePool(x) a = Conv(p, full) g = Softmax<axis = 1>(a) y = Mul(x, g)",
    ),
    "a sum instead of a mean": (
        "pooled-attention",
        "p = ReduceSum<keepdims = 1>(x, map_axes) a = Conv(p, full) g = Sigmoid(a) y = Mul(x, g)",
    ),
}
_TO_TWICE = "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, twice)"
_BY_GROUP = "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, small) g = Sigmoid(c)"
MORE_KIN |= {
    "gate and shift of one layer, as in lc0": (
        "se-shift",
        f"{_TO_TWICE} h, k = Split<axis = 1>(c) g = Sigmoid(h) z = Mul(x, g) y = Add(z, k)",
    ),
    "the larger of two lines": (
        "dynamic-relu",
        f"""{_TO_TWICE} h, k = Split<axis = 1>(c) g = Sigmoid(h) z = Mul(x, g) u = Add(k, z) y = Max(u, x)""",
    ),
    "a part of what the last layer gives": (
        "pooled-attention",
        f"{_TO_TWICE} h, k = Split<axis = 1>(c) g = Sigmoid(h) y = Mul(x, g)",
    ),
    "one gate for each group, expanded": (
        "pooled-attention",
        f"{_BY_GROUP} h = Reshape(g, by_group) e = Expand(h, twofold) k = Reshape(e, map) y = Mul(x, k)",
    ),
    "one gate for each group, tiled": (
        "pooled-attention",
        f"{_BY_GROUP} k = Tile(g, repeats) y = Mul(x, k)",
    ),
    "hidden units twice over": (
        "pooled-attention",
        """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) h = Reshape(r, by_group)
        e = Expand(h, twofold) k = Reshape(e, map) c = Conv(k, full) g = Sigmoid(c) y = Mul(x, g)""",
    ),
    "one gate for each group, gathered": (
        "pooled-attention",
        f"{_BY_GROUP} k = Gather<axis = 1>(g, twice_over) y = Mul(x, k)",
    ),
    "one gate for each group, resized": (
        "pooled-attention",
        f'{_BY_GROUP} k = Resize<mode = "nearest">(g, , channels_up) y = Mul(x, k)',
    ),
    "gates of other channels, shuffled": (
        "pooled-attention",
        """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) v = Reshape(c, pairs_of)
        t = Transpose<perm = [0, 2, 1, 3, 4]>(v) u = Reshape(t, map) g = Sigmoid(u) y = Mul(x, g)""",
    ),
}
SCALED_OTHERWISE = {
    "one gate for each group of 2 channels": f"""{_BY_GROUP} v = Reshape(x, groups) h = Reshape(g, by_group)
        z = Mul(v, h) y = Reshape(z, square)""",
    "a Div applies the gate": """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2)
        n = Neg(c) e = Exp(n) o = Add(e, unit) z = Div(x, o) y = Identity(z)""",
    "a MatMul applies the gates": f"""p = GlobalAveragePool(x) {GATE} h = Reshape(g, tall) d = Mul(h, eye)
        f = Reshape(x, lines) z = MatMul(d, f) y = Reshape(z, square)""",
    "as a diagonal matrix": f"""p = GlobalAveragePool(x) {GATE} h = Reshape(g, tall)
        d = Where(diagonal, h, nought) f = Reshape(x, lines) z = MatMul(d, f) y = Reshape(z, square)""",
}
"""By what the census says of `z`, which scales by a gate in a way that no pass reads."""
NOT_SCALED = {
    "a Div by no gate": "p = GlobalAveragePool(x) a = Conv(p, full) y = Div(x, a)",
    "a Div by another tensor's": """h = Relu(x) p = GlobalAveragePool(h) a = Conv(p, full) e = Exp(a)
        o = Add(e, unit) y = Div(x, o)""",
    "a MatMul with a full matrix": f"""p = GlobalAveragePool(x) {GATE} h = Reshape(g, tall) d = Mul(h, half)
        t = Transpose<perm = [0, 2, 1]>(d) f = Reshape(x, lines) z = MatMul(t, f) s = ReduceMean(z)
        y = Mul(x, s)""",
    "a softmax by hand": "e = Exp(x) s = ReduceSum(e, map_axes) y = Div(e, s)",
}
NEITHER = {
    "SiLU": "s = Sigmoid(x) y = Mul(x, s)",
    "HardSwish": "s = HardSigmoid(x) y = Mul(s, x)",
    "gated linear unit": "s, t = Split<axis = 1>(x) g = Sigmoid(t) y = Mul(s, g)",
    "spatial attention": """a = ReduceMean<axes = [1]>(x) m = ReduceMax<axes = [1]>(x)
        c = Concat<axis = 1>(a, m)
        d = Conv<pads = [3, 3, 3, 3]>(c, spatial) g = Sigmoid(d) y = Mul(x, g)""",
    "pooled from": f"h = Relu(x) p = GlobalAveragePool(x) {GATE} y = Mul(h, g)",
    "no learned layer": "p = GlobalAveragePool(x) g = Sigmoid(p) y = Mul(x, g)",
    "not bounded": "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) y = Mul(x, c)",
    "added": "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) y = Add(x, c)",
    "both factors are parts": "s, t = Split<axis = 1>(x) g = HardSigmoid(t) y = Mul(g, s)",
    "scales 'h'": "p = GlobalAveragePool(x) a = Conv(p, full) g = Sigmoid(a) h = Pow(x, half) y = Mul(g, h)",
    "resized from a coarser map": """p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        a = Conv(p, full) s = Sigmoid(a) g = Resize<mode = "nearest">(s, , scales) y = Mul(x, g)""",
    "another axis": """q = ReduceMean<axes = [1, 2]>(x) m = MatMul(q, six) g = Sigmoid(m)
        t = Transpose<perm = [0, 1, 3, 2]>(g) y = Mul(x, t)""",
    "": "p = GlobalAveragePool(x) a = Conv(p, w1) y = Relu(a)",
}
