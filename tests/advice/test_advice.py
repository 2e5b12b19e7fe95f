import json

import numpy as np
import onnx_ir as ir
import pytest
import use_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from se_deploy import advice, data, graph, inspect
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.cli.main import main
from se_deploy.commands.inspect import to_schema
from se_deploy.errors import BadData, BadInput, BadModel
from se_deploy.options import ImageOptions
from se_deploy.quantization import to_fp16

CHANNELS, HIDDEN = 12, 6
FITTED = 1e-5  # a least-squares fit of fp32 activations that has an exact solution
CONV = """
    p = GlobalAveragePool(r)
    h = Conv(p, w1, b1)
    u = Relu(h)
    z = Conv(u, w2, b2)
    {gate}
    y = Mul(r, s)"""
LINEAR = """
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = Gemm <transB = 1> (f, w1, b1)
    u = Relu(h)
    z0 = Gemm <transB = 1> (u, w2, b2)
    z = Unsqueeze(z0, axes)
    {gate}
    y = Mul(r, s)"""
ONE_LAYER = """
    p = GlobalAveragePool(r)
    z = Conv(p, w, b2)
    s = Sigmoid(z)
    y = Mul(r, s)"""
GATES = {
    "sigmoid": ("s = Sigmoid(z)", lambda z: 1 / (1 + np.exp(-z))),
    "hardsigmoid": ("s = HardSigmoid <alpha = 0.16666667> (z)", lambda z: np.clip(z / 6 + 0.5, 0, 1)),
    "one plus tanh": ("t = Tanh(z)\n    s = Add(t, one)", lambda z: 1 + np.tanh(z)),
    "twice": ("t = Sigmoid(z)\n    s = Mul(t, two)", lambda z: 2 / (1 + np.exp(-z))),
    "softsign": ("t = Softsign(z)\n    s = Add(t, one)", lambda z: 1 + z / (1 + np.abs(z))),
}


def weights(seed=0, channels=CHANNELS, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    return {
        "w1": rng.normal(0, 1, (hidden, channels)),
        "b1": rng.normal(0.5, 0.1, hidden),
        "w2": rng.normal(0, 1, (channels, hidden)),
        "b2": rng.normal(0, 0.1, channels),
    }


def network(given, body=CONV, gate="sigmoid", *, batch="N", before="r = Identity(x)"):
    """One block on `x`; `given` are its weights."""
    spatial = () if body is LINEAR else (1, 1)
    constants = {"one": [1], "two": [2], **given}
    arrays = {k: np.asarray(v, np.float32) for k, v in constants.items()}
    arrays = {k: v.reshape(*v.shape, *spatial) if k[0] == "w" else v for k, v in arrays.items()}
    arrays["axes"] = np.array([2, 3], np.int64)
    channels = len(given["b2"])
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{batch},{channels},4,4] x) => (float[{batch},{channels},4,4] y) {{
        {before}{body.format(gate=GATES[gate][0])}
    }}"""
    proto = parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in used)
    return graph.tidy(ir.from_proto(proto))


def images(count=40, channels=CHANNELS):
    return np.random.default_rng(0).normal(0.3, 1.0, (count, channels, 4, 4)).astype(np.float32)


def hidden_of(given, x):
    return np.maximum(x.mean((2, 3), dtype=np.float64) @ given["w1"].T + given["b1"], 0)


def advise(model, folder, x=None, **options):
    np.save(folder / "x.npy", images() if x is None else x)
    runtime = OrtRuntime(threads=1, optimize=False)
    with runtime.open(model) as session:
        samples = data.read(folder / "x.npy", session.inputs)
    return advice.advise(model, samples, runtime, **options)


def idle():
    """Units 1 and 4 behind ReLU always 0 on the data, unit 2 always 3, for every input."""
    given = weights()
    given["b1"][[1, 4]] = -100
    given["w1"][2], given["b1"][2] = 0, 3
    return given


@pytest.mark.parametrize("body", [CONV, LINEAR], ids=["conv", "linear"])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid", "one plus tanh", "twice"])
def test_dead_and_constant_units_are_found_and_may_go(tmp_path, body, gate):
    (found,) = advise(network(idle(), body, gate), tmp_path).blocks
    assert (found.output, found.channels, found.hidden, found.samples) == ("y", CHANNELS, HIDDEN, 40)
    assert (found.dead, found.constant, found.removable) == ((1, 4), (2,), (2,))
    assert found.exact == found.widths[0].hidden == 3
    assert found.widths[0].max_gate_error < FITTED
    assert 1 < found.effective_rank <= 3


def test_the_exact_width_reproduces_the_outputs(tmp_path):
    given, x = idle(), images()
    before = network(given)
    (found,) = advise(before, tmp_path, x).blocks
    kept = [n for n in range(HIDDEN) if n not in {*found.dead, *found.constant}]
    value = hidden_of(given, x)[0]
    after = network(
        {
            "w1": given["w1"][kept],
            "b1": given["b1"][kept],
            "w2": given["w2"][:, kept],
            "b2": given["b2"] + given["w2"][:, found.constant] @ value[list(found.constant)],
        }
    )
    assert len(kept) == found.exact
    runtime = OrtRuntime(threads=1, optimize=False)
    with runtime.open(before) as a, runtime.open(after) as b:
        np.testing.assert_allclose(b.run({"x": x})["y"], a.run({"x": x})["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_the_exact_width_is_exact_however_few_the_samples(tmp_path, samples):
    given = idle()
    given["w1"][0] = 0.3  # moves on any data
    found = advise(network(given), tmp_path, images(samples))
    (block,) = found.blocks
    assert block.widths[0].max_gate_error < FITTED
    assert "hidden units" in found.warnings[0]


def test_what_the_weights_prove_is_told_from_what_the_data_shows(tmp_path):
    given = weights()
    given["w1"][0], given["b1"][0] = -np.abs(given["w1"][0]), -0.1  # behind a squeeze of Relu: never on
    given["b1"][1] = -100  # never on in this data
    given["w2"][:, 3] = 0  # on, and read by nobody
    (found,) = advise(network(given, before="r = Relu(x)"), tmp_path).blocks
    assert found.dead == (0, 1)
    assert found.removable == (0, 3)
    assert found.exact == found.widths[0].hidden == HIDDEN - 3
    (signed,) = advise(network(given), tmp_path).blocks
    assert signed.removable == (3,)


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid", "one plus tanh", "twice"])
def test_the_error_is_that_of_the_best_fit_on_half_of_the_data(tmp_path, gate):
    """Take the unit that helps most, then the next, by least squares on z; measure on the other half."""
    given, x = weights(), images()
    (found,) = advise(network(given, gate=gate), tmp_path, x, tolerance=0.0).blocks
    hidden, function = hidden_of(given, x), GATES[gate][1]
    z = hidden @ given["w2"].T + given["b2"]

    def fitted(kept):
        design = np.concatenate([hidden[:, kept], np.ones((len(x), 1))], axis=1)
        return design @ np.linalg.lstsq(design[::2], z[::2], rcond=None)[0]

    kept, errors = [], {}
    for width in range(1, HIDDEN + 1):
        left = [n for n in range(HIDDEN) if n not in kept]
        kept.append(min(left, key=lambda n: ((fitted([*kept, n]) - z)[::2] ** 2).sum()))
        errors[width] = np.abs(function(fitted(kept)[1::2]) - function(z[1::2]))
    assert [w.hidden for w in found.widths] == [6, 5, 4, 3, 1]
    for width in found.widths:
        error = errors[width.hidden]
        assert width.mean_gate_error == pytest.approx(error.mean(), abs=FITTED)
        assert width.rms_gate_error == pytest.approx(np.sqrt((error**2).mean()), abs=FITTED)
        assert width.max_gate_error == pytest.approx(error.max(), abs=FITTED)
        assert width.ratio == CHANNELS / width.hidden


def test_the_error_falls_with_the_width(tmp_path):
    (found,) = advise(network(weights()), tmp_path, images(400), tolerance=0.0).blocks
    assert (found.widths[0].hidden, found.widths[-1].hidden) == (HIDDEN, 1)
    errors = [w.rms_gate_error for w in found.widths]
    assert errors == sorted(errors)


def test_a_copied_unit_costs_neither_rank_nor_accuracy(tmp_path):
    given = weights()
    given["w1"][3:], given["b1"][3:] = given["w1"][:3], given["b1"][:3]
    given["w2"] *= np.array([3, 1, 1, 3, 1, 1])  # whoever looks at units alone takes both copies of the first
    (found,) = advise(network(given), tmp_path).blocks
    by_width = {w.hidden: w for w in found.widths}
    assert found.dead == found.constant == ()
    assert found.effective_rank <= 3 + 1e-3
    assert by_width[3].max_gate_error < FITTED
    assert found.suggested <= 3


def test_the_rank_is_that_of_the_values_before_the_gates(tmp_path):
    given, x = weights(), images()
    (found,) = advise(network(given), tmp_path, x).blocks
    z = hidden_of(given, x) @ given["w2"].T
    singular = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    assert found.effective_rank == pytest.approx(advice.effective_rank(singular[:HIDDEN]), rel=1e-4)


def test_the_tolerance_is_a_share_of_what_the_gate_can_be(tmp_path):
    once, twice = (
        advise(network(weights(), gate=gate), tmp_path, tolerance=0.05).blocks[0]
        for gate in ("sigmoid", "twice")
    )
    assert [w.hidden for w in once.widths] == [w.hidden for w in twice.widths]
    assert once.suggested == twice.suggested
    assert twice.widths[-1].mean_gate_error == pytest.approx(2 * once.widths[-1].mean_gate_error, rel=1e-3)
    few = next(w for w in once.widths if w.hidden == once.suggested)
    assert 0.05 / 2 < few.mean_gate_error <= 0.05  # so that half the tolerance would suggest another


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), tolerance=st.floats(0.002, 0.2))
def test_the_suggested_width_is_the_smallest_within_the_tolerance(tmp_path_factory, seed, tolerance):
    folder = tmp_path_factory.mktemp("advice")
    model = network(weights(seed, hidden=11))
    (found,) = advise(model, folder, tolerance=tolerance).blocks
    by_width = {w.hidden: w.mean_gate_error for w in found.widths}
    assert by_width[found.suggested] <= tolerance
    assert found.suggested == 1 or by_width[found.suggested - 1] > tolerance


def test_hidden_units_in_step_have_rank_one_and_may_go(tmp_path):
    """Units that are multiples of one another and never clipped: one says what all say."""
    given = weights()
    given["w1"] = np.outer([1, 2, 0.5, 3, 1.5, 0.2], given["w1"][0])
    given["b1"] = np.full(HIDDEN, 50.0)
    (found,) = advise(network(given), tmp_path).blocks
    assert found.dead == found.constant == ()
    assert found.effective_rank == pytest.approx(1, abs=1e-3)
    assert found.suggested == 1
    assert found.widths[-1].max_gate_error < 1e-3  # fp32 activations of size 100


def test_gates_that_do_nothing_are_counted(tmp_path):
    given = weights()
    given["w2"][:5] = 0
    given["b2"][:5] = [-20, -20, 20, 20, 0]
    (found,) = advise(network(given), tmp_path).blocks
    assert (found.gates_shut, found.gates_open, found.gates_constant) == (2, 2, 5)


def test_a_gate_of_two_is_open_at_two(tmp_path):
    given = weights()
    given["w2"][:] = 0
    given["b2"][:4] = [20, 20, 0, -20]
    for gate in ("one plus tanh", "twice"):
        (found,) = advise(network(given, gate=gate), tmp_path).blocks
        assert (found.gates_shut, found.gates_open, found.gates_constant) == (1, 2, CHANNELS)


def test_mean_and_spread_of_the_gates(tmp_path):
    given, x = weights(), images()
    (found,) = advise(network(given), tmp_path, x).blocks
    gates = GATES["sigmoid"][1](hidden_of(given, x) @ given["w2"].T + given["b2"])
    assert found.gate_mean == pytest.approx(gates.mean(), rel=1e-4)
    assert found.gate_std == pytest.approx(gates.std(), rel=1e-4)
    assert found.gate_std_by_sample == pytest.approx(np.sqrt(gates.var(axis=0).mean()), rel=1e-4)


def test_a_block_of_one_layer_has_its_gates_looked_at_and_says_why_no_more(tmp_path):
    given = {"w": np.zeros((CHANNELS, CHANNELS)), "b2": np.full(CHANNELS, -20.0)}
    found = advise(network(given, ONE_LAYER), tmp_path)
    (block,) = found.blocks
    assert (block.gates_shut, block.gates_constant, block.hidden) == (CHANNELS, CHANNELS, None)
    assert (block.exact, block.widths, block.suggested) == (None, (), None)
    assert [(no.output, "one learned layer" in no.reason) for no in found.skipped] == [("y", True)]


def test_a_gate_of_unknown_function_has_no_widths(tmp_path):
    found = advise(network(idle(), gate="softsign"), tmp_path)
    (block,) = found.blocks
    assert (block.dead, block.widths, block.suggested) == ((1, 4), (), None)


def test_a_block_that_is_dead_altogether_keeps_one_unit(tmp_path):
    given = weights()
    given["b1"][:] = -100
    (found,) = advise(network(given), tmp_path).blocks
    assert (found.exact, found.effective_rank, found.suggested) == (1, 0, 1)
    assert found.dead == tuple(range(HIDDEN))
    assert found.widths[0].max_gate_error < FITTED


def test_samples_that_fill_no_batch_are_observed_too(tmp_path):
    frozen, free = (advise(network(weights(), batch=b), tmp_path, images(43)) for b in (8, "N"))
    assert frozen.samples == frozen.blocks[0].samples == 43
    assert frozen.blocks[0].gate_mean == pytest.approx(free.blocks[0].gate_mean)


def test_one_sample_is_refused(tmp_path):
    with pytest.raises(BadData, match="2 samples or more"):
        advise(network(weights()), tmp_path, images(1))


def test_a_graph_without_blocks_has_no_advice(tmp_path):
    found = advise(network(weights(), "\n    y = Relu(r)"), tmp_path)
    assert (found.blocks, found.skipped, found.warnings) == ((), (), ())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=8))
def test_effective_rank_lies_between_one_and_the_count(values):
    singular = np.array(values)
    rank = advice.effective_rank(singular)
    if singular.sum() == 0:
        assert rank == 0
    else:
        assert 1 - 1e-9 <= rank <= np.count_nonzero(singular) + 1e-9


@pytest.mark.parametrize("count", [1, 3, 7])
def test_effective_rank_of_equal_values_is_their_number(count):
    assert advice.effective_rank(np.full(count, 2.5)) == pytest.approx(count)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for seed in range(6):
        use_graphs.noise(tmp_path / "photos" / f"{seed}.png", seed)
    use_graphs.save(tmp_path / "se.onnx", use_graphs.SE)
    use_graphs.save(tmp_path / "bare.onnx", use_graphs.SE, None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    talk = capsys.readouterr()
    return e.value.code, talk.out, talk.err


def test_inspect_gives_advice_as_json(folder, capsys):
    code, out, err = run(capsys, "inspect", "se.onnx", "--calib-data", "photos", "--json")
    assert code == 0, err
    found = json.loads(out)["advice"]
    assert (found["samples"], found["tolerance"], found["skipped"]) == (6, advice.TOLERANCE, [])
    (block,) = found["blocks"]
    assert (block["output"], block["channels"], block["hidden"]) == ("m", 8, 2)
    assert block["exact"] == block["widths"][0]["hidden"]


def test_inspect_gives_advice_on_a_file_that_does_not_say_what_it_takes(folder, capsys):
    given = ("--calib-data", "photos", "--input-size", "3x8x8", "--json")
    normalized = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    _, same, err = run(capsys, "inspect", "bare.onnx", *given, *normalized)
    assert same, err
    _, out, _ = run(capsys, "inspect", "se.onnx", *given)
    assert json.loads(same)["advice"] == json.loads(out)["advice"]
    code, _, err = run(capsys, "inspect", "bare.onnx", "--calib-data", "photos")
    assert code == 1
    assert "--input-size" in err


def test_inspect_draws_advice_as_a_table_and_a_page(folder, capsys):
    given = ("--calib-data", "photos", "--calib-samples", "4", "--html", "page.html")
    code, out, err = run(capsys, "inspect", "se.onnx", *given)
    assert code == 0, err
    assert "Widths that 4 samples ask for" in " ".join(out.split())
    assert "Suggested width" in (folder / "page.html").read_text("utf-8")


def test_inspect_without_data_gives_no_advice(folder):
    assert to_schema(inspect("se.onnx")).advice is None


def test_advice_asks_for_the_float_graph(folder):
    graph.save(to_fp16(graph.load(folder / "se.onnx")).model, folder / "half.onnx")
    with pytest.raises(BadModel, match="FP16"):
        inspect("half.onnx", calib_data=folder / "photos", image=ImageOptions())
    (folder / "se.engine").write_bytes(b"engine")
    with pytest.raises(BadInput, match="is an engine"):
        inspect("se.engine", calib_data=folder / "photos")
