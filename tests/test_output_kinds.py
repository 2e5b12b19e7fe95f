"""Every output is compared by what it is: labels, masks and boxes are no numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run as call
from use_graphs import save

from se_deploy import comparison
from se_deploy.comparison import boxes
from se_deploy.comparison.kinds import kinds_of
from se_deploy.errors import BadInput
from se_deploy.protocols import TensorSpec

SEEDS = st.integers(0, 10**6)
PRESETS = tuple(comparison.PRESETS.values())


@dataclass
class Given:
    """A session that answers each batch with the next of the arrays it was given."""

    answers: list
    side: int = 12

    @property
    def inputs(self):
        return (TensorSpec("x", np.dtype(np.float32), (None, 3, self.side, self.side)),)

    @property
    def outputs(self):
        return tuple(TensorSpec(n, a.dtype, (None,) * a.ndim) for n, a in self.answers[0].items())

    def run(self, feeds):
        return self.answers[int(feeds["x"].flat[0])]


def compared(want, got, samples=1, **options):
    """Both as lists of batches, or as one batch; the measures by name."""
    want, got = (each if isinstance(each, list) else [each] for each in (want, got))
    feeds = [{"x": np.full((samples, 3, 12, 12), i, np.float32)} for i in range(len(want))]
    parity = comparison.compare(Given(want), Given(got), feeds, **options)
    return {output.name: output for output in parity.outputs}


def passes(output, preset="fp16"):
    return not comparison.PRESETS[preset].failures(output)


def detected(rng, count):
    low = rng.uniform(0, 400, (count, 2))
    return {
        "boxes": np.concatenate([low, low + rng.uniform(5, 200, (count, 2))], 1).astype(np.float32),
        "scores": np.sort(rng.uniform(0.05, 1, count))[::-1].astype(np.float32),
        "labels": rng.integers(0, 5, count),
    }


KINDS = {
    "logits": lambda rng: rng.standard_normal((6, 10)).astype(np.float32),
    "labels": lambda rng: rng.integers(0, 9, 6),
    "mask": lambda rng: rng.integers(0, 4, (6, 12, 12)),
    "boxes": lambda rng: detected(rng, 7)["boxes"],
    "scores": lambda rng: detected(rng, 7)["scores"],
    "embedding": lambda rng: rng.standard_normal((6, 16)).astype(np.float32),
    "values": lambda rng: rng.standard_normal((6, 4, 5)).astype(np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_identical_outputs_pass_every_preset(kind, seed):
    array = KINDS[kind](np.random.default_rng(seed))
    output = compared({"y": array}, {"y": array.copy()}, len(array), kinds={"y": kind})["y"]
    assert output.kind == kind
    assert all(not preset.failures(output) for preset in PRESETS)
    shares = (output.top1_agreement, output.top5_agreement, output.agreement, output.iou)
    assert {share for share in shares if share is not None} <= {1.0}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"labels", "mask"}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(kind, bad):
    array = KINDS[kind](np.random.default_rng(0))
    broken = array.copy()
    broken.flat[1] = bad
    output = compared([{"y": array}, {"y": array}], [{"y": broken}, {"y": array}], 6, kinds={"y": kind})["y"]
    assert all(preset.failures(output) for preset in PRESETS)


def test_labels_and_masks_of_floats_pass_no_nan_either():
    labels = np.arange(2000, dtype=np.float32)
    broken = np.where(labels == 7, np.nan, labels).astype(np.float32)  # a share that every preset allows
    output = compared({"y": labels}, {"y": broken}, 2000, kinds={"y": "labels"})["y"]
    assert output.agreement == pytest.approx(1 - 1 / 2000)
    assert all(preset.failures(output) for preset in PRESETS)
    mask = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    broken = mask.copy()
    broken[0, 0, 0, 0] = np.nan
    output = compared({"y": mask}, {"y": broken}, kinds={"y": "mask"})["y"]
    assert all(preset.failures(output) for preset in PRESETS)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, flipped=st.integers(0, 5), dtype=st.sampled_from([np.int64, np.uint8, np.bool_]))
def test_one_flipped_label_is_seen(seed, flipped, dtype):
    labels = np.random.default_rng(seed).integers(0, 2, 6).astype(dtype)
    other = labels.copy()
    other[flipped] = 1 - other[flipped] if dtype != np.bool_ else ~other[flipped]
    output = compared({"y": labels}, {"y": other}, 6)["y"]
    assert (output.kind, output.agreement, output.top1_agreement) == ("labels", 5 / 6, 5 / 6)
    assert (output.max_rel, output.cosine, output.sqnr_db) == (None, None, None)
    assert all(preset.failures(output) for preset in PRESETS)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_integers_are_not_compared_as_floats(dtype):
    y = np.full(4, 2**60, dtype)
    output = compared({"y": y}, {"y": y + dtype(1)}, 4)["y"]  # the same number as a float64
    assert (output.agreement, output.max_abs) == (0.0, 1.0)


def test_the_gap_of_integers_at_both_ends_of_their_range():
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    output = compared({"y": np.array([low, high])}, {"y": np.array([high, low])}, 2)["y"]
    assert output.max_abs == float(2**64 - 1)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(0, 30))
def test_permuted_boxes_are_equal(seed, count):
    rng = np.random.default_rng(seed)
    want = detected(rng, count)
    order = rng.permutation(count)
    found = compared(want, {name: array[order] for name, array in want.items()})
    assert {name: output.kind for name, output in found.items()} == {name: name for name in want}
    assert found["boxes"].iou == found["boxes"].agreement == (1.0 if count else None)
    assert all(output.max_abs == 0 for output in found.values())
    assert all(not preset.failures(output) for preset in PRESETS for output in found.values())


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_matching_is_one_to_one_symmetric_and_within_bounds(seed):
    rng = np.random.default_rng(seed)
    a, b = (detected(rng, int(rng.integers(0, 25)))["boxes"].astype(float) for _ in range(2))
    one, other = boxes.match(a, b), boxes.match(b, a)
    assert len(set(one.reference)) == len(set(one.candidate)) == len(one.iou)
    assert ((one.iou >= boxes.MIN_IOU) & (one.iou <= 1)).all()
    assert set(zip(one.reference, one.candidate, strict=True)) == set(
        zip(other.candidate, other.reference, strict=True)
    )


def test_a_box_more_or_less_moves_the_iou_and_raises_nothing():
    want = detected(np.random.default_rng(1), 9)
    found = compared(want, {name: array[:-1] for name, array in want.items()})
    assert found["boxes"].iou == found["boxes"].agreement == pytest.approx(8 / 9)
    assert not passes(found["boxes"])
    assert passes(found["boxes"], "int8")
    assert passes(found["scores"])
    assert passes(found["labels"])
    none = compared(want, {name: array[:0] for name, array in want.items()})["boxes"]
    assert none.iou == 0
    assert all(preset.failures(none) for preset in PRESETS)


def test_a_moved_box_and_a_changed_label_are_seen():
    want = detected(np.random.default_rng(2), 5)
    got = {name: array.copy() for name, array in want.items()}
    side = got["boxes"][0, 2] - got["boxes"][0, 0]
    got["boxes"][0, [0, 2]] += side / 3  # an IoU of 2/3 of an area in 4/3
    got["labels"][1] += 1
    found = compared(want, got)
    assert found["boxes"].iou == pytest.approx((4 + 0.5) / 5, rel=1e-5)
    assert found["labels"].agreement == pytest.approx(4 / 5)


def test_equal_boxes_go_with_their_labels_and_then_with_the_nearer_scores():
    box = np.array([[0, 0, 10, 10]] * 2, np.float32)
    shaken = box + np.float32([[0.01], [0.0]])  # both of the reference overlap most with the second
    want = {"boxes": box, "scores": np.float32([0.9, 0.9]), "labels": np.array([1, 2])}
    assert compared(want, {**want, "boxes": shaken})["labels"].agreement == 1.0
    want = {"boxes": box, "scores": np.float32([0.9, 0.8])}
    assert compared(want, {**want, "scores": want["scores"][::-1]})["scores"].max_abs == 0


def test_a_nan_of_one_batch_is_not_forgotten_in_the_next():
    array = np.ones((6, 4, 5), np.float32)
    broken = np.where(np.arange(5) == 1, np.nan, array).astype(np.float32)
    output = compared([{"y": broken}, {"y": array}], [{"y": array}] * 2, 6)["y"]  # of the reference's own
    assert np.isnan(output.max_abs)
    assert all(preset.failures(output) for preset in PRESETS)


def test_rows_that_fill_up_a_fixed_number_of_boxes_are_not_counted():
    rng = np.random.default_rng(3)
    want = {"boxes": np.zeros((1, 100, 4), np.float32), "scores": np.zeros((1, 100), np.float32)}
    want["boxes"][0, :4], want["scores"][0, :4] = detected(rng, 4)["boxes"], 0.5
    got = {name: array.copy() for name, array in want.items()}
    got["boxes"][0, 3] = 0
    assert compared(want, got)["boxes"].iou == pytest.approx(3 / 4)


def test_a_grid_of_many_boxes_is_compared_in_place():
    want = detected(np.random.default_rng(4), 3000)  # 9 million pairs
    got = {**want, "boxes": want["boxes"][np.r_[1, 0, 2:3000]]}
    found = compared(want, got)["boxes"]
    assert found.iou == 1.0
    assert found.max_abs == 0


def test_centres_and_sizes_are_boxes_too():
    want = np.array([[[50, 50, 20, 20], [5, 80, 4, 6]]], np.float32)
    got = want.copy()
    got[0, 0, 0] += 10
    output = compared({"pred_boxes": want}, {"pred_boxes": got[:, ::-1]})["pred_boxes"]
    assert output.kind == "boxes"
    assert output.agreement == pytest.approx(1 / 3)  # an IoU of 1/3 is another object
    with pytest.raises(BadInput, match="no boxes"):
        compared({"y": want * [1, 1, -1, -1]}, {"y": want}, kinds={"y": "boxes"})


def test_scores_and_indices_of_any_number_are_sets():
    want, got = np.float32([0.9, 0.7, 0.3]), np.float32([0.9, 0.7])
    output = compared({"y": want}, {"y": got}, kinds={"y": "scores"})["y"]
    assert (output.max_abs, output.agreement) == (0.0, pytest.approx(2 / 3))
    assert not passes(output)
    rows = np.array([[0, 1, 5], [0, 0, 7], [0, 2, 9]])
    output = compared({"y": rows}, {"y": rows[:2]})["y"]
    assert output.agreement == pytest.approx(2 / 3)
    with pytest.raises(BadInput, match=r"'y' have shapes \(3,\) and \(2,\)"):
        compared({"y": want}, {"y": got})


def test_mean_iou_of_masks_is_over_classes_and_batches():
    want = np.zeros((2, 12, 12), np.int64)
    want[:, :6] = 3
    got = want.copy()
    got[1, 5] = 0  # of each batch's 144 pixels of class 3 a sixth of one image
    output = compared([{"y": want}] * 2, [{"y": got}, {"y": want}], 2)["y"]
    assert output.kind == "mask"
    assert output.iou == pytest.approx(((288 - 12) / 288 + 288 / (288 + 12)) / 2)
    assert output.agreement == pytest.approx(1 - 12 / (2 * 288))
    assert not passes(output)


def test_a_mask_of_scores_is_its_arg_max_and_one_class_its_sign():
    scores = np.random.default_rng(0).standard_normal((1, 5, 12, 12)).astype(np.float32)
    output = compared({"out": scores}, {"out": scores * 2 + 1})["out"]
    assert (output.kind, output.iou, output.agreement) == ("mask", 1.0, 1.0)
    assert not passes(output)  # the answers are the same, the scores are not
    one = scores[:, :1]
    output = compared({"mask": one}, {"mask": np.where(one > 1, -one, one)})["mask"]
    assert output.iou is not None
    assert output.iou < 1
    share = 1 / (1 + np.exp(-one))
    assert compared({"mask": share}, {"mask": share * 1.0001}, kinds={"mask": "mask"})["mask"].iou == 1.0


def test_an_answer_pushed_out_of_the_five_best_is_seen():
    want = np.tile(np.arange(20, dtype=np.float32), (4, 1))
    got = want.copy()
    got[0, 19] = 15.5  # fourth after it
    got[1, 19] = 13.5  # out of five
    output = compared({"y": want}, {"y": got}, 4)["y"]
    assert (output.top1_agreement, output.top5_agreement) == (0.5, 0.75)
    assert compared({"y": want[:, :5]}, {"y": want[:, :5]}, 4)["y"].top5_agreement is None
    loose = comparison.tolerance("int8", min_cosine=0, min_top1=0.5)
    assert "top-5" not in " ".join(loose.failures(output))  # who accepts half the answers accepts these
    assert "top-5 agreement 75.00%" in " ".join(comparison.PRESETS["int8"].failures(output))


def test_an_embedding_is_held_to_its_worst_sample():
    want = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    got = want.copy()
    got[7] = np.roll(got[7], 1)
    output = compared({"embedding": want}, {"embedding": got}, 50)["embedding"]
    assert output.kind == "embedding"
    assert output.top1_agreement is None
    assert output.worst_cosine == pytest.approx(float(want[7] @ got[7] / (want[7] @ want[7])), abs=1e-6)
    assert "cosine of the worst sample" in " ".join(comparison.PRESETS["int8"].failures(output))


IMAGE = {"x": np.zeros((2, 3, 12, 12), np.float32)}
GUESSES = [
    ("logits", {"y": np.zeros((2, 10), np.float32)}),
    ("values", {"y": np.zeros((2, 1), np.float32)}),
    ("values", {"y": np.zeros((2, 3, 12, 12), np.float32)}),  # a picture
    ("values", {"y": np.zeros((2, 64, 3, 3), np.float32)}),  # features
    ("mask", {"y": np.zeros((2, 21, 12, 12), np.float32)}),
    ("mask", {"y": np.zeros((2, 1, 12, 12), np.int64)}),
    ("mask", {"y": np.zeros((2, 12, 12, 1), np.uint8)}),
    ("labels", {"y": np.zeros((2, 12, 12, 3), np.uint8)}),
    ("labels", {"y": np.zeros(2, np.int64)}),
    ("logits", {"y": np.float32([[1, 2, 3, 4]] * 2), "label": np.zeros(2, np.int64)}),  # four classes
    ("boxes", {"y": np.float32([[1, 2, 3, 4]] * 5), "z": np.zeros(5, np.float32)}),
    ("boxes", {"bboxes": np.zeros((0, 4), np.float32)}),
    ("values", {"bbox_regression": np.float32([[[1, 2, 3, 4]] * 5] * 2), "cls": np.zeros((2, 5, 9))}),
    ("scores", {"confidence": np.zeros((2, 5, 9)), "boxes": np.float32([[[1, 2, 3, 4]] * 5] * 2)}),
    ("embedding", {"y": np.float32([[0.6, -0.8], [-1.0, 0.0]])}),
    ("logits", {"y": np.float32([[1.0, 0.0], [0.0, 1.0]])}),  # probabilities of one class
]  # fmt: skip


@pytest.mark.parametrize(("kind", "outputs"), GUESSES)
def test_what_an_output_is_taken_for(kind, outputs):
    assert kinds_of(outputs, IMAGE)[next(iter(outputs))] == kind


@pytest.mark.parametrize(
    ("kind", "values"),
    [("mask", np.float32([0.01, 0.99])), ("values", np.float32([0.3, 0.6])), ("values", np.float32([-1, 3]))],
)
def test_one_channel_of_decided_probabilities_is_a_mask(kind, values):
    pixels = np.random.default_rng(0).choice(values, (2, 1, 12, 12))
    assert kinds_of({"y": pixels}, {"x": np.zeros((2, 3, 12, 12), np.float32)}) == {"y": kind}
    assert kinds_of({"y": pixels}, {"x": np.zeros((2, 1, 12, 12), np.float32)}) == {"y": "values"}, (
        "a picture"
    )


def test_a_mask_may_turn_over_a_pixel_at_an_edge_in_fp16_and_not_in_fp32():
    mask = np.zeros((1, 1, 64, 64), np.float32)
    mask[:, :, :32] = 0.98
    near = mask.copy()
    near[0, 0, 32, 5] = 0.2
    output = compared({"y": mask}, {"y": near}, kinds={"y": "mask"})["y"]
    assert not comparison.PRESETS["fp16"].failures(output)
    assert "largest error" in comparison.PRESETS["fp32"].failures(output)[0]
    near[:, :, 32:34] = 0.9  # an edge that moved
    output = compared({"y": mask}, {"y": near}, kinds={"y": "mask"})["y"]
    assert any("IoU" in text for text in comparison.PRESETS["fp16"].failures(output))


def test_a_mask_of_frames_is_one_too():
    frames = {"x": np.zeros((2, 12, 10, 3), np.uint8)}
    assert kinds_of({"y": np.zeros((2, 5, 12, 10), np.float32)}, frames) == {"y": "mask"}
    assert kinds_of({"y": np.zeros((2, 3, 12, 10), np.float32)}, frames) == {"y": "values"}


@pytest.mark.parametrize(
    ("kind", "array"),
    [("logits", np.zeros(4)), ("mask", np.zeros((2, 3))), ("mask", np.zeros((2, 5, 5))),
     ("boxes", np.zeros((2, 5))), ("embedding", np.zeros(2)), ("picture", np.zeros((2, 2)))],
)  # fmt: skip
def test_a_kind_that_an_output_cannot_be_is_refused(kind, array):
    with pytest.raises(BadInput, match=f"'y' .* cannot be compared as {kind}"):
        kinds_of({"y": array}, IMAGE, {"y": kind})


def test_accuracy_is_that_of_the_first_classifier():
    scores = np.eye(4, 10, dtype=np.float32)
    truth = np.array([0, 1, 2, 9])
    outputs = {"features": np.zeros((4, 2, 2), np.float32), "logits": scores}
    feeds = [{"x": np.zeros((4, 3, 12, 12), np.float32)}]
    parity = comparison.compare(Given([outputs]), Given([outputs]), feeds, labels=truth)
    assert parity.reference_accuracy == 0.75
    labels = {"class": truth}
    parity = comparison.compare(Given([labels]), Given([labels]), feeds, labels=truth)
    assert parity.candidate_accuracy == 1.0


FRAMES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch},3,8,8] x) => (float[{batch},3] scores, int64[{batch}] label, int64[{batch},8,8] plane) {{
    p = GlobalAveragePool(x)
    scores = Flatten(p)
    label = ArgMax <axis = 1, keepdims = 0> (scores)
    plane = ArgMax <axis = 1, keepdims = 0> (x)
}}"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.onnx", FRAMES)
    head, plane = FRAMES.split("plane = ArgMax")
    save(tmp_path / "b.onnx", f"{head}plane = ArgMin{plane}")
    np.save("x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))


def test_the_command_says_what_each_output_is(files, capsys):
    words = ("parity", "a.onnx", "a.onnx", "b.onnx", "--data", "x.npy", "--json")
    code, out, _ = call(capsys, *words)
    assert code == 3
    same, other = json.loads(out)["candidates"]
    assert [o["kind"] for o in same["outputs"]] == ["logits", "labels", "mask"]
    assert [o["passed"] for o in same["outputs"]] == [True] * 3
    assert [o["passed"] for o in other["outputs"]] == [True, True, False]
    assert (same["outputs"][2]["iou"], same["outputs"][1]["agreement"]) == (1.0, 1.0)
    assert other["outputs"][2]["iou"] == 0.0
    assert other["failures"] == ["'plane': mean IoU 0.00% < 99.00%"]


def test_the_command_takes_another_kind(files, capsys):
    words = ("parity", "a.onnx", "a.onnx", "--data", "x.npy", "--json")
    code, out, _ = call(capsys, *words, "--output", "plane:labels", "--output", "scores:values")
    assert code in {0, None}
    outputs = json.loads(out)["candidates"][0]["outputs"]
    assert [o["kind"] for o in outputs] == ["values", "labels", "labels"]
    code, out, _ = call(capsys, *words, "--output", "planes:mask")
    assert code == 1
    error = json.loads(out)["error"]
    assert "no output 'planes'" in error["message"]
    assert "scores, label, plane" in error["hint"]
    code, out, _ = call(capsys, *words, "--output", "plane:mask", "--output", "plane:labels")
    assert code == 2
    assert "'plane' as mask and as labels" in json.loads(out)["error"]["message"]
    code, out, _ = call(capsys, *words, "--output", "plane:picture")
    assert code == 2
    assert "logits, labels, mask" in json.loads(out)["error"]["message"]


def test_check_takes_kinds_and_a_floor_on_the_iou(files, capsys):
    table = '[parity]\nreference = "a.onnx"\ncandidates = "b.onnx"\ndata = "x.npy"\n'
    config = Path("se-deploy.toml")
    config.write_text(table + 'min_iou = 0.0\noutputs = {plane = "mask"}\n')
    assert call(capsys, "check", "--json")[0] in {0, None}
    config.write_text(table + 'outputs = {plane = "picture"}\n')
    code, out, _ = call(capsys, "check", "--json")
    assert code == 1
    assert "picture" in out
