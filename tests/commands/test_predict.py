from __future__ import annotations

import json

import needs
import numpy as np
import pytest
import use_graphs
from PIL import Image

from se_deploy import data
from se_deploy.backends import manifest as manifests
from se_deploy.backends.onnxruntime.session import OrtSession
from se_deploy.cli.main import main
from se_deploy.commands import predict
from se_deploy.errors import BadArtifact, BadData, BadInput, MissingRuntime
from se_deploy.options import ImageOptions, NetworkOptions

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def net(tmp_path):
    return use_graphs.save(tmp_path / "net.onnx")


@pytest.fixture
def images(tmp_path):
    return [
        use_graphs.image(tmp_path / "red.png", RED),
        use_graphs.image(tmp_path / "blue.png", BLUE, size=(8, 20)),
        use_graphs.noise(tmp_path / "noise.jpg"),
    ]


def run(capsys, *args):
    code = main([str(a) for a in args], standalone_mode=False)
    out = capsys.readouterr()
    return code or 0, out.out, out.err


def test_the_most_probable_classes_come_first_with_their_labels(net, images):
    red, blue, _ = predict.predict(net, images, top=2).predictions
    assert [guess.label for guess in red.top] == ["red", "green"]
    assert blue.top[0].label == "blue"
    assert (blue.top[0].index, len(blue.top)) == (2, 2)


def test_probabilities_are_the_softmax_of_the_scores(net, images):
    noise = predict.predict(net, images, top=99).predictions[2]
    with Image.open(images[2]) as image:
        prepared = data.preprocess(image, use_graphs.SPEC)
    powers = np.exp(4.0 * prepared.mean(axis=(1, 2), dtype=np.float64))
    by_index = {guess.index: guess.probability for guess in noise.top}
    assert [by_index[i] for i in range(3)] == pytest.approx(powers / powers.sum(), rel=1e-4)
    assert sum(by_index.values()) == pytest.approx(1)


def test_scores_above_zero_are_scores_all_the_same(net, tmp_path):
    white = use_graphs.image(tmp_path / "white.png", (255, 255, 255))
    (prediction,) = predict.predict(net, [white]).predictions
    assert [g.probability for g in prediction.top] == pytest.approx([1 / 3] * 3)


def test_a_network_that_ends_in_softmax_is_not_softmaxed_again(net, images, tmp_path):
    ended = use_graphs.save(tmp_path / "ended.onnx", use_graphs.ending("softmax"))
    plain = predict.predict(net, images).predictions
    for ours, theirs in zip(predict.predict(ended, images).predictions, plain, strict=True):
        assert [g.index for g in ours.top] == [g.index for g in theirs.top]
        assert [g.probability for g in ours.top] == pytest.approx(
            [g.probability for g in theirs.top], abs=1e-6
        )


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_frozen_batch_is_filled_up_and_gives_the_same(net, images, tmp_path, batch):
    frozen = use_graphs.save(tmp_path / "frozen.onnx", batch=batch)
    want = predict.predict(net, images).predictions
    got = predict.predict(frozen, images).predictions
    assert [p.image for p in got] == [str(p) for p in images]
    for a, b in zip(want, got, strict=True):
        assert [g.probability for g in a.top] == pytest.approx([g.probability for g in b.top], rel=1e-5)


SHARED = {
    "by a softmax over the batch": "y = Softmax<axis = 0>(z)",
    "as steps of a sequence": "t = Constant<value = int64 {{0}}>()\n    y = CumSum(z, t)",
    "by less than padding is refused for": (
        "m = ReduceMean<axes = [0], keepdims = 1>(z)\n    t = Mul(m, little)\n    y = Add(z, t)"
    ),
}
MIXED = {
    how: use_graphs.ending("softmax")
    .replace("y = Softmax(z)", ending)
    .replace("gain = {{4.0}}", "gain = {{4.0}}, float[1] little = {{0.004}}")
    for how, ending in SHARED.items()
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("how", MIXED)
def test_answers_that_depend_on_the_rest_of_the_batch_are_pointed_out(capsys, images, tmp_path, how, count):
    """They were handed over without a word: those of a whole batch, and of a filled one that hardly move."""
    net = use_graphs.save(tmp_path / "mixed.onnx", MIXED[how], batch=2)
    if count % 2 and "softmax" in how:
        with pytest.raises(BadData, match="would be answered with padding"):
            predict.predict(net, images[:count])
        return
    code, out, err = run(capsys, "predict", net, *images[:count], "--json")
    (warning,) = json.loads(out)["warnings"]
    assert code == 0
    assert "output 'y' answers a sample otherwise where the others in its batch are others" in warning
    assert warning in err


@pytest.mark.parametrize("batch", ["N", 1])
def test_one_image_at_a_time_depends_on_no_other(images, tmp_path, batch):
    net = use_graphs.save(tmp_path / "mixed.onnx", MIXED["by a softmax over the batch"], batch=batch)
    assert predict.predict(net, images).warnings == ()


def test_an_output_that_is_not_said_may_depend_on_what_it_likes(images, tmp_path):
    text = use_graphs.MEANS.replace("[{batch},3] y)", "[{batch},3] y, float b)").replace(
        "y = Mul(f, gain)", "y = Mul(f, gain)\n    b = ReduceMax<keepdims = 0>(y)"
    )
    assert predict.predict(use_graphs.save(tmp_path / "two.onnx", text, batch=2), images[:2]).warnings == ()


@pytest.mark.parametrize(("count", "runs"), [(1, 3), (2, 3), (3, 2), (4, 3), (6, 3)])
def test_that_samples_are_told_apart_costs_one_run(images, tmp_path, monkeypatch, count, runs):
    """And padding is tried only where that is not known: 4 images took 3 runs before, too."""
    net, fed, run = use_graphs.save(tmp_path / "frozen.onnx", batch=3), [], OrtSession.run
    monkeypatch.setattr(OrtSession, "run", lambda self, feeds: fed.append(feeds) or run(self, feeds))
    predict.predict(net, (images * 2)[:count])
    assert len(fed) == runs


def test_flags_stand_in_for_a_missing_input_spec(net, images, tmp_path):
    bare = use_graphs.save(tmp_path / "bare.onnx", spec=None)
    with pytest.raises(BadInput, match="does not say how an image") as e:
        predict.predict(bare, images)
    assert "--input-size" in e.value.hint
    spec = use_graphs.SPEC
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(spec.labels))
    image = ImageOptions(mean=spec.mean, std=spec.std, size=spec.shape, labels=labels)
    found = predict.predict(bare, images, network=NetworkOptions(image=image))
    assert found.predictions == predict.predict(net, images).predictions
    assert found.warnings == ()
    guessed = predict.predict(bare, images, network=NetworkOptions(image=ImageOptions(size=spec.shape)))
    assert "--mean and --std" in guessed.warnings[0]
    assert guessed.predictions[0].top[0].label is None


def test_flags_replace_fields_of_the_spec(net, images):
    darker = predict.predict(net, images[:1], network=NetworkOptions(image=ImageOptions(std=(1.0, 1.0, 1.0))))
    assert darker.predictions[0].top[0].probability < 0.99


@needs.TORCH
def test_a_network_specification_is_asked_in_torch(images, tmp_path):
    source = tmp_path / "tiny.py"
    source.write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    image = ImageOptions(size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    network = NetworkOptions(input_size=(3, 8, 8), image=image)
    found = predict.predict(f"{source}:net", images[:2], network=network)
    assert [p.top[0].index for p in found.predictions] == [0, 2]
    assert found.runtime == "torch"


def test_labels_that_do_not_fit_are_refused_unless_others_are_given(images, tmp_path):
    net = use_graphs.save(tmp_path / "net.onnx", spec=use_graphs.spec(labels=("red",)))
    with pytest.raises(BadInput, match="carries 1 label for 3 classes") as e:
        predict.predict(net, images)
    assert "--labels" in e.value.hint
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    with pytest.raises(BadInput, match="--labels names 4 labels for 3 classes"):
        predict.predict(net, images, network=NetworkOptions(image=ImageOptions(labels=labels)))
    labels.write_text("a\nb\nc\n")
    found = predict.predict(net, images, network=NetworkOptions(image=ImageOptions(labels=labels)))
    assert found.predictions[0].top[0].label == "a"


@pytest.mark.parametrize(
    "fields", [{"height": 16}, {"width": 4}, {"channels": 1, "mean": (0.5,), "std": (0.5,)}]
)
def test_a_spec_of_another_size_than_the_graph_s_is_refused(images, tmp_path, fields):
    net = use_graphs.save(tmp_path / "net.onnx", spec=use_graphs.spec(**fields))
    with pytest.raises(BadInput, match=r"takes \?x3x8x8, its input spec makes images of") as e:
        predict.predict(net, images)
    assert "--input-size" in e.value.hint
    if "channels" not in fields:
        right = use_graphs.save(tmp_path / "right.onnx")
        found = predict.predict(net, images, network=NetworkOptions(image=ImageOptions(size=(3, 8, 8))))
        assert found.predictions == predict.predict(right, images).predictions


REFUSED = {
    "map": (use_graphs.MEANS.replace("y = Mul(f, gain)", "y = Mul(x, gain)"), BadInput, "no classifier"),
    "one number": (
        use_graphs.MEANS.replace("y = Mul(f, gain)", "y = ReduceMean<axes = [1]>(f)"),
        BadInput,
        "no classifier",
    ),
    "nan": (use_graphs.ending("nan"), BadArtifact, "NaN"),
    "bytes": (
        use_graphs.MEANS.replace("float[{batch},3,8,8] x", "int8[{batch},3,8,8] x")
        .replace("p = ", "c = Cast<to = 1>(x)\n    p = ")
        .replace("Pool(x)", "Pool(c)"),
        BadInput,
        "takes int8",
    ),
    "two inputs": (
        use_graphs.MEANS.replace("8,8] x)", "8,8] x, float[N,3] w)").replace("gain)", "w)"),
        BadInput,
        "takes 2 inputs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_classifier_is_refused(images, tmp_path, name):
    text, error, message = REFUSED[name]
    if name in {"map", "one number"}:
        text = text.replace("(float[{batch},3] y)", "(float[a, b] y)" if name == "one number" else "(y)")
    path = use_graphs.save(tmp_path / "odd.onnx", text, weights=False)
    with pytest.raises(error, match=message):
        predict.predict(path, images)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"no image", "it is none of JPEG, PNG"), (None, "truncated|broken")],
)
def test_an_unreadable_image_is_named(net, images, tmp_path, content, reason):
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[2].read_bytes()[:-40] if content is None else content)
    with pytest.raises(BadData, match=rf"broken\.png.*({reason})") as e:
        predict.predict(net, [images[0], broken])
    assert "0x" not in str(e.value)  # no object's address
    assert "--skip-unreadable" not in e.value.hint  # predict has no such flag


def engine(folder, **fields):
    """An engine's files as `build-engine` leaves them; its bytes are none that a runtime loads."""
    onnx = use_graphs.save(folder / "net.engine.onnx")
    path = folder / "net.engine"
    path.write_bytes(b"vtrt" + bytes(64))
    made = use_graphs.manifest(path, onnx, **fields)
    manifests.write(made, manifests.path_of(path))
    return path


def test_an_engine_without_its_gpu_points_to_the_onnx_beside_it(images, tmp_path, monkeypatch):
    path = engine(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MissingRuntime) as e:
        predict.predict(path, images)
    assert "net.engine.onnx" in e.value.hint
    (tmp_path / "net.engine.onnx").unlink()
    with pytest.raises(MissingRuntime) as e:
        predict.predict(path, images)
    assert "net.engine.onnx" not in e.value.hint


def test_a_network_whose_package_is_missing_is_not_an_engine(images):
    with pytest.raises((MissingRuntime, BadInput)) as e:
        predict.predict("nowhere.to.be:found", images)
    assert "predict" not in e.value.hint


def test_json_is_one_object_of_the_contract(capsys, net, images):
    code, out, err = run(capsys, "predict", net, images[0], "--json", "--top", 1, "-q")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["schema"] == "se-deploy/predict/1"
    assert (found["artifact"], found["runtime"]) == (str(net), "onnxruntime")
    (prediction,) = found["predictions"]
    assert prediction["image"] == str(images[0])
    (guess,) = prediction["top"]
    assert (guess["index"], guess["label"]) == (0, "red")
    assert 0.9 < guess["probability"] <= 1


def test_the_table_names_every_image(capsys, net, images):
    code, out, _ = run(capsys, "predict", net, *images)
    assert code == 0
    assert all(word in out for word in ("red", "green", "blue", "noise.jpg"))


def test_a_missing_path_is_a_usage_error_and_a_broken_image_is_not(capsys, net, images, tmp_path):
    assert run(capsys, "predict", tmp_path / "no.onnx", images[0])[0] == 2
    assert run(capsys, "predict", tmp_path / "no.engine", images[0])[0] == 2
    assert run(capsys, "predict", net, tmp_path / "no.png")[0] == 2
    assert run(capsys, "predict", net)[0] == 2
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    code, out, _ = run(capsys, "predict", net, broken, "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (1, "BadData")
