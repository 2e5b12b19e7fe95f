"""`sweep`: what the matrix is, what is kept between calls, and what it prints and leaves."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
from pathlib import Path

import needs
import numpy as np
import pytest
import use_graphs
from msgspec.structs import replace

from se_deploy.cli import main
from se_deploy.commands import run as commands_run
from se_deploy.commands import sweep, sweep_choice, sweep_plan, sweep_results
from se_deploy.commands.sweep_plan import Asked
from se_deploy.errors import BadInput, OutputExists
from se_deploy.schema import encode
from se_deploy.schema.sweep import SweepArtifact, SweepCell
from se_deploy.sweeps.tasks import Failure, Outcome

QUICK = "search_plans = 0\nwarmup_ms = 1\nduration_s = 0.02\n"


def call(*words):
    """Return a command's exit code, its object, and what it says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words], standalone_mode=False)
    return code, json.loads(out.getvalue()) if out.getvalue() else None, err.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a network, its data, and a file that is no network."""
    use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def matrix(text="", *, packages=None, **flags):
    path = None
    if text:
        path = Path("sweep.toml")
        path.write_text(text)
    return sweep_plan.read(path, Asked(**flags), packages or {})


def test_the_matrix_is_in_the_order_written(folder):
    found = matrix(
        'models = ["net.onnx", "timm:b"]\nprecisions = ["int8", "fp16"]\ntargets = ["orin-nano", "sm86"]\n'
        'batches = [1, "dynamic"]\ncalib_data = "x.npy"\n'
    )
    assert [cell.folder for cell in found.cells[:5]] == [
        "cells/net.onnx/int8-orin-nano-batch1", "cells/net.onnx/int8-orin-nano",
        "cells/net.onnx/int8-sm86-batch1", "cells/net.onnx/int8-sm86",
        "cells/net.onnx/fp16-orin-nano-batch1",
    ]  # fmt: skip
    assert len(found.cells) == 16
    assert found.cells[8].folder.startswith("cells/timm_b/int8")
    assert len({cell.key for cell in found.cells}) == 16
    assert len({cell.prepare_key for cell in found.cells}) == 8, "targets share what needs no device"
    assert set(found.cells[0].files) == {"net.onnx", "x.npy"}


def test_flags_replace_what_the_file_says(folder):
    text = 'models = ["timm:a", "timm:b"]\nprecisions = ["fp16", "int8"]\n'
    found = matrix(text, models=("net.onnx",), precisions=("fp32",), batches=(4,))
    assert [(c.model, c.precision, c.batch, c.target) for c in found.cells] == [("net.onnx", "fp32", 4, None)]


def test_paths_are_seen_from_the_file(folder):
    (folder / "deep").mkdir()
    text = 'calib_data = "../x.npy"\n[[network]]\nmodel = "../net.onnx"\n[[network]]\nmodel = "own.py:Net"\n'
    (folder / "deep" / "sweep.toml").write_text(text)
    (folder / "deep" / "own.py").write_text("")
    found = sweep_plan.read(Path("deep/sweep.toml"), Asked(), {})
    assert [cell.model for cell in found.cells] == ["net.onnx", "deep/own.py:Net"]
    assert set(found.cells[1].files) == {"deep/own.py", "x.npy"}


def test_two_networks_of_one_model_have_folders_of_their_own(folder):
    text = "".join(f'[[network]]\nmodel = "timm:a"\nmodel_args = {{num_classes = {n}}}\n' for n in (2, 3))
    names = [cell.folder for cell in matrix(text).cells]
    assert len(set(names)) == 2
    assert all(name.startswith("cells/timm_a-") for name in names)
    turned = "".join(f'[[network]]\nmodel = "timm:a"\nmodel_args = {{num_classes = {n}}}\n' for n in (3, 2))
    assert [cell.folder for cell in matrix(turned).cells] == names[::-1], "the order names nothing"


@pytest.mark.parametrize("own", ['data = "x.npy"', "threads = 1", "seed = 1", 'calib_data = "x.npy"'])
def test_networks_that_differ_in_anything_share_no_folder(folder, own):
    cells = matrix(f'[[network]]\nmodel = "timm:a"\n[[network]]\nmodel = "timm:a"\n{own}\n').cells
    assert len({cell.folder for cell in cells}) == len({cell.key for cell in cells}) == 2


def test_a_network_named_twice_is_one(folder):
    found = matrix(models=("timm:a", "timm:b", "timm:a"), batches=(1, 1)).cells
    assert [cell.model for cell in found] == ["timm:a", "timm:b"]


ALL_KEYS = """
precisions = "fp16"
targets = "sm86"
batches = 2
calib_samples = 4
calib_method = "mse"
allow_random_calibration = true
runtime = "onnxruntime"
search_plans = 3
warmup_ms = 1.5
duration_s = 0.5
iterations = 7
[[network]]
model = "net.onnx"
checkpoint = "x.npy"
model_args = {num_classes = 2, name = "1", sizes = [1, 2]}
pretrained = true
input_size = [3, 8, 8]
mean = [-0.5, 0.25, 0.0]
std = [1.0, 0.5, 2.0]
seed = 3
threads = 2
calib_data = "x.npy"
data = "net.onnx"
"""


@pytest.mark.parametrize(
    "text",
    [
        'models = "net.onnx"\n',
        ALL_KEYS,
        'models = "net.onnx"\nrewrites = false\n',
        'models = "net.onnx"\nrewrites = ["gate-behind-pool", "squeeze-nhwc-mean"]\n',
    ],
    ids=["defaults", "every key", "no rewrites", "one rewrite"],
)
def test_the_command_of_a_cell_does_the_same(folder, monkeypatch, text):
    """It is in each cell's report, as what reproduces it."""
    (cell,) = matrix(text).cells
    asked = {}

    def recorded(model, output, **rest):
        asked.update(rest, model=model, output=output)
        raise BadInput("seen", hint="stop")

    monkeypatch.setattr(commands_run, "run", recorded)
    assert call(*shlex.split(cell.command)[1:], "--json")[0] == 1
    assert (asked["model"], asked["output"]) == (cell.model, Path(cell.folder))
    assert asked["calibration"] == cell.calibration
    assert asked["options"] == cell.options


def key(text="", **flags):
    base = 'models = "net.onnx"\ncalib_data = "x.npy"\ntargets = "sm86"\n'
    return matrix(f"{base}{text}", **flags).cells[0].key


def test_a_key_changes_with_everything_that_goes_in(folder):
    keys = [
        key(), key("duration_s = 1\n"),
        key(precisions=("fp16",)), key(targets=("sm89",)), key(batches=(1,)), key("search_plans = 1\n"),
        key("calib_samples = 4\n"), key(packages={"onnx": "1"}),
    ]  # fmt: skip
    np.save(folder / "x.npy", np.zeros((8, 3, 8, 8), np.float32))
    keys.append(key())
    use_graphs.save(folder / "net.onnx", use_graphs.SE.replace("Relu", "Elu"))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key()
    assert key("cell_seconds = 5\n") == key(), "a limit is no input"


def test_the_source_of_a_module_goes_in(folder):
    """It lies in the working directory, from which a network is imported and the tool is not."""
    (folder / "own_nets.py").write_text("A = 1")
    before = matrix(models=("own_nets:Net",)).cells[0].key
    (folder / "own_nets.py").write_text("A = 2")
    assert matrix(models=("own_nets:Net",)).cells[0].key != before


def test_a_module_that_cannot_be_imported_fails_its_own_cells_only(folder):
    (folder / "broken_nets").mkdir()
    (folder / "broken_nets" / "__init__.py").write_text("from os import no_such_thing")
    assert len(matrix(models=("broken_nets.own:Net", "net.onnx")).cells) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no network"),
        ("targets = 'sm86'\n", "no network"),
        ("models = ['a']\nprecision = 'fp16'\n", "precision"),
        ("models = ['a']\nprecisions = ['bf16']\n", "precisions"),
        ("models = ['a']\ntargets = ['orin-nana']\n", "orin-nano"),
        ("models = ['a']\nbatches = [0]\n", "batches"),
        ("models = ['a'\n", "no TOML"),
        ("models = ['gone.onnx']\n", "gone.onnx"),
        ("[[network]]\nmodel = 'timm:a'\ncheckpoint = 'gone.pth'\n", "gone.pth"),
    ],
)
def test_a_wrong_matrix_is_refused_before_any_work(folder, text, words):
    with pytest.raises(BadInput) as refused:
        matrix(text or "\n")
    assert words in f"{refused.value.message} {refused.value.hint}"


def test_without_ray_one_sentence_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    words = ("--model", "net.onnx", "--calib-data", "x.npy", "-o", "out", "--json", "--on", "ray")
    code, found, _ = call("sweep", *words)
    assert code == 1
    assert found["error"]["kind"] == "MissingRuntime"
    assert "se-deploy[sweep]" in found["error"]["hint"]


@pytest.mark.parametrize("on", ["somewhere", "ray://host", "ray:host:1", "ray://host:port"])
def test_who_works_is_one_of_three(folder, on):
    assert call("sweep", "--model", "net.onnx", "-o", "out", "--on", on, "--json")[0] == 2


def test_flags_reach_who_works(folder, monkeypatch):
    asked = {}

    def recorded(found, output, *, options, **_):
        asked.update(seconds=found.cell_seconds, options=options)
        raise BadInput("seen", hint="stop")

    monkeypatch.setattr(sweep, "sweep", recorded)
    words = (
        "--on",
        "ray://10.0.0.1:10001",
        "--store",
        ".",
        "--retries",
        3,
        "--cell-seconds",
        1.5,
        "--retry-failed",
    )
    call("sweep", "--model", "net.onnx", "-o", "out", "--json", "--cell-seconds", 1.5, *words)
    assert asked["seconds"] == 1.5
    assert asked["options"] == sweep.SweepOptions(
        on="ray://10.0.0.1:10001", store=Path(), retries=3, retry_failed=True
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--jobs", "2", "--on", "ray"), "worker --cpus")],
)
def test_a_flag_that_would_have_no_effect_is_refused(folder, words, says):
    code, found, _ = call(
        "sweep", "--model", "net.onnx", "--calib-data", "x.npy", "-o", "out", "--json", *words
    )
    assert (code, found["error"]["kind"]) == (1, "BadInput")
    assert says in found["error"]["hint"]


def test_what_another_sweep_made_is_published_under_this_ones_names(folder):
    """With --store a step of the same key is taken from whoever did it, and the folder is in no key."""
    (mine,) = matrix(models=("net.onnx",), calib_data=Path("x.npy")).cells
    theirs = SweepCell(
        model="net.onnx", precision="int8", target=None, batch="dynamic", state="done", key=mine.key,
        folder="cells/other/int8", report="cells/other/int8/report.html", reason=None,
    )  # fmt: skip
    Path("made").mkdir()
    Path("made/cell.json").write_text(encode(theirs))
    Path("made/report.html").write_text("page")
    outcome = Outcome(mine.key, "node", 0.0, 0, None, Path("made"))
    found = sweep_results.published(mine, outcome, [], Path("out"))
    assert (found.folder, found.report) == (mine.folder, f"{mine.folder}/report.html")
    assert (Path("out") / found.report).read_text() == "page"


class Failing:
    """Says of every task that it failed, and what went otherwise than usual."""

    nodes = ()

    def run(self, tasks, _inputs, *, ended, count):
        del count
        for task in tasks:
            failure = Failure("BadModel", "no network", "-")
            ended(Outcome(task.key, "node", 1.0, 1, failure, note="what was kept is lost"))


def test_what_went_otherwise_than_usual_is_a_warning(folder, monkeypatch):
    asked = matrix(models=("net.onnx",), calib_data=Path("x.npy"))
    monkeypatch.setattr(sweep, "_executor", lambda _: contextlib.nullcontext(Failing()))
    found = sweep.sweep(asked, "out").warnings
    name = asked.cells[0].folder
    assert found == (f"{name} failed: no network", f"{name}: what was kept is lost")


def published(cell, *names):
    """Publish a result with these files, or a failure where there are none."""
    made = Path("made")
    made.mkdir(exist_ok=True)
    for name in names:
        (made / name).write_text(name)
    summary = SweepCell(
        model=cell.model, precision="int8", target=None, batch="dynamic", state="done", key=cell.key,
        folder=cell.folder, reason=None,
    )  # fmt: skip
    (made / "cell.json").write_text(encode(summary))
    failure = None if names else Failure("BadModel", "no network", "-")
    outcome = Outcome(cell.key, "node", 1.0, 1, failure, made if names else None)
    return sweep_results.published(cell, outcome, [], Path("out"))


def test_a_result_with_fewer_files_leaves_none_of_the_earlier_one(folder):
    """An engine of the earlier one would pass for the new one's; what no result left is the user's."""
    (mine,) = matrix(models=("net.onnx",), calib_data=Path("x.npy")).cells
    place = Path("out") / mine.folder
    first = published(mine, "report.html", "model.int8.engine")
    assert set(first.files) == {"report.html", "model.int8.engine"}
    (place / "notes.txt").write_text("mine")
    assert published(mine, "report.html").files == ("report.html",)
    assert {path.name for path in place.iterdir()} == {"report.html", "notes.txt", "cell.json"}
    assert published(mine).state == "failed"
    assert {path.name for path in place.iterdir()} == {"notes.txt", "cell.json"}


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_text("another"), lambda path: path.unlink(), None],
    ids=["changed", "removed", "as they were"],
)
def test_a_cell_whose_files_are_not_its_own_any_more_does_not_stand(folder, damage):
    found = matrix(models=("net.onnx",), calib_data=Path("x.npy"), cell_seconds=1e-3)
    (mine,) = found.cells
    made = published(mine, "report.html", "model.int8.engine")
    path = Path("out") / mine.folder / "model.int8.engine"
    if damage is None:
        assert sweep_results.altered(made, Path("out")) is None
        assert sweep.sweep(found, "out").made.cells[0].state == "cached"
        return
    damage(path)
    with pytest.raises(OutputExists, match=r"model\.int8\.engine"):
        sweep.sweep(found, "out")
    again = sweep.sweep(found, "out", options=sweep.SweepOptions(jobs=1, overwrite=True))
    assert again.made.cells[0].kind == "TimeLimit", "it is computed again"


def test_a_result_names_no_file_outside_of_its_folder(folder):
    (mine,) = matrix(models=("net.onnx",), calib_data=Path("x.npy")).cells
    place = Path("out") / mine.folder
    place.mkdir(parents=True)
    made = published(mine, "report.html")
    (place / "cell.json").write_text(encode(replace(made, files=("report.html", "../../../../x.npy"))))
    published(mine)
    assert Path("x.npy").exists()


def test_a_folder_of_the_user_where_a_file_belongs_fails_the_cell_alone(folder):
    (mine,) = matrix(models=("net.onnx",), calib_data=Path("x.npy")).cells
    place = Path("out") / mine.folder
    (place / "report.html").mkdir(parents=True)
    found = published(mine, "report.html", "model.int8.engine")
    assert (found.state, found.kind) == ("failed", "CannotWrite")
    assert "report.html" in found.reason
    assert "move it" in found.hint
    assert {path.name for path in place.iterdir()} == {"report.html", "cell.json"}


@pytest.mark.parametrize("name", ["..", "", ".", "a\0b", "n" * 300, "folder", "cell.json"])
def test_a_damaged_list_of_files_stops_no_sweep(folder, name):
    (mine,) = matrix(models=("net.onnx",), calib_data=Path("x.npy")).cells
    place = Path("out") / mine.folder
    made = published(mine, "report.html")
    (place / "folder").mkdir()
    (place / "cell.json").write_text(encode(replace(made, files=(name, "report.html"))))
    assert published(mine).state == "failed"
    assert {path.name for path in place.iterdir()} == {"folder", "cell.json"}


def known(cell, **rest):
    """Leave a failed cell as an earlier sweep does."""
    place = Path("out") / cell.folder
    place.mkdir(parents=True)
    (place / "cell.json").write_text(encode(SweepCell(
        model=cell.model, precision=cell.precision, target=None, batch="dynamic", state="failed",
        folder=cell.folder, key=cell.key, reason="as before", hint="none", **rest,
    )))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "retry", "again"),
    [
        ("BadModel", False, False), ("BadModel", True, True), ("LostWorker", False, True),
        ("TimeLimit", False, True), ("NoWorker", False, True), ("NotShared", False, True),
        ("MissingRuntime", False, True),
    ],
)  # fmt: skip
def test_what_the_machine_caused_is_tried_again_and_else_what_is_asked_for(folder, kind, retry, again):
    """The limit ends a new try at once."""
    found = matrix(models=("net.onnx",), calib_data=Path("x.npy"), cell_seconds=1e-3)
    known(found.cells[0], kind=kind)
    result = sweep.sweep(found, "out", options=sweep.SweepOptions(jobs=1, retry_failed=retry))
    (cell,) = result.made.cells
    assert (cell.kind, cell.reason) == (
        ("TimeLimit", "it took longer than 0.001 s") if again else (kind, "as before")
    )


def test_a_limit_of_the_flag_replaces_the_files(folder):
    text = 'models = "net.onnx"\ncell_seconds = 5\n'
    assert matrix(text).cell_seconds == 5
    assert matrix(text, cell_seconds=2.5).cell_seconds == 2.5


def artifact(ms, accuracy, *, passed=True, path="model.fp16.engine"):
    return SweepArtifact(
        path=path, precision="fp16", ms=ms, ms_from="planned", accuracy=accuracy, passed=passed
    )


def cell(folder, *artifacts, target="sm86"):
    return SweepCell(
        model=folder, precision="fp16", target=target, batch="dynamic", state="done", folder=folder,
        reason=None, key="", artifacts=artifacts,
    )  # fmt: skip


def test_a_verdict_that_a_cell_has_not_is_named():
    judged = replace(cell("a"), verdicts={"parity": True, "latency": None})
    made = sweep.SweepResult(Path("out"), "", sweep.Sweep(
        tool_version="", warnings=(), cells=(judged,), report="", csv="", on="local", done=1, cached=0,
        failed=0, seconds=0.0,
    ))  # fmt: skip
    assert made.unjudged == {"latency": f"{judged.folder} has no verdict"}


def test_the_fastest_that_is_about_as_accurate_is_recommended():
    cells = [
        cell("slow", artifact(2.0, 0.80)), cell("near", artifact(1.0, 0.791)),
        cell("far", artifact(0.5, 0.70)),
        cell("wrong", artifact(0.1, 0.80, passed=False)), cell("other", target="sm89"),
    ]  # fmt: skip
    chosen, nothing = sweep_choice.choices(cells)
    assert (chosen.target, chosen.folder) == ("sm86", "near")
    assert "79.10 %" in chosen.reason
    assert (nothing.target, nothing.folder, nothing.artifact) == ("sm89", None, None)


def test_without_classes_the_fastest_that_passes_is_recommended():
    chosen = sweep_choice.choices([cell("a", artifact(2.0, None)), cell("b", artifact(1.0, None))])[0]
    assert chosen.folder == "b"
    assert "no classes" in chosen.reason


def test_a_planned_time_does_not_win_against_a_measured_one():
    """A roofline is always short of what is measured; so a timing that was not steady would win."""
    measured = replace(artifact(2.0, 0.8), ms_from="measured")
    unknown = replace(artifact(None, 0.8), ms_from=None)
    cells = [cell("planned", artifact(0.5, 0.8)), cell("measured", measured), cell("neither", unknown)]
    chosen = sweep_choice.choices(cells)[0]
    assert chosen.folder == "measured"
    assert "the fastest of 1 within" in chosen.reason
    assert chosen.reason.endswith("not compared with 2 that have no measured time")
    assert "not compared" not in sweep_choice.choices(cells[1:2])[0].reason


def test_what_a_run_and_what_the_sweep_recommends_are_two_columns():
    cells = [
        replace(cell("a", artifact(1.0, 0.8)), recommended="model.fp16.engine"),
        replace(cell("b", artifact(0.5, 0.8)), recommended="model.fp16.engine"),
    ]
    rows = list(csv.DictReader(io.StringIO(sweep.as_csv(cells, sweep_choice.choices(cells)))))
    assert [row["run_recommends"] for row in rows] == ["true", "true"], "each of its own engines"
    assert [row["sweep_recommends"] for row in rows] == ["false", "true"], "the fastest of all"


def test_a_spreadsheet_takes_no_cell_for_a_formula():
    bad = replace(cell("=1+1", artifact(1.0, 0.5)), state="failed", reason="@x")
    row = next(csv.DictReader(io.StringIO(sweep.as_csv([bad]))))
    assert (row["model"], row["reason"], row["ms"], row["parity"]) == ("'=1+1", "'@x", "1.0", "true")


@pytest.mark.slow
@needs.RTX
def test_a_sweep_from_end_to_end(folder):
    Path("sweep.toml").write_text(
        'models = ["net.onnx", "broken.onnx"]\nprecisions = ["fp16", "int8"]\ntargets = ["sm86", "sm89"]\n'
        f'calib_data = "x.npy"\n{QUICK}'
    )
    code, first, said = call("sweep", "sweep.toml", "-o", "out", "--json")
    assert code == 0
    assert [c["state"] for c in first["cells"]] == ["done"] * 4 + ["failed"] * 4
    assert "broken.onnx" in first["cells"][4]["reason"]
    assert "failed: 'broken.onnx'" in said
    assert (first["done"], first["cached"], first["failed"]) == (4, 0, 4)
    out = Path("out")
    for found in first["cells"][:4]:
        report = json.loads((out / found["folder"] / "report.json").read_text())
        assert report["schema"] == "se-deploy/run/1"
        assert (out / found["report"]).is_file()
        for engine in found["artifacts"]:
            assert (out / found["folder"] / engine["path"]).is_file()
        assert set(found["files"]) == {p.name for p in (out / found["folder"]).iterdir()} - {"cell.json"}
        assert not list((out / found["folder"]).glob("*.pickle"))
    export, lower, build = "export, quantize", "lower precision", "build-engine, profile"
    steps = [[(step["name"], step["shared"]) for step in found["steps"]] for found in first["cells"][:4]]
    assert steps == [
        [(export, False), (build, False)],
        [(export, True), (build, False)],
        [(export, True), (lower, False), (build, False)],
        [(export, True), (lower, True), (build, False)],
    ], "the network is exported once, and what needs no device is done once for both targets"
    for number in range(2):  # whoever of the two came first built it
        both = (first["cells"][number], first["cells"][number + 2])
        assert sum(cell["artifacts"][0]["kept"] for cell in both) == 1
        one, other = ((out / cell["folder"] / "model.fp16.engine").read_bytes() for cell in both)
        assert one == other
    assert len((out / "sweep.csv").read_text().splitlines()) == 1 + 2 + 4 + 4
    assert json.loads((out / "sweep.json").read_text()) == first
    assert first["cells"][0]["artifacts"][0]["ms_from"] == "planned"

    times = {path: path.stat().st_mtime_ns for path in out.rglob("cells/**/*")}
    code, second, _ = call("sweep", "sweep.toml", "-o", "out", "--json", "-q")
    assert code == 0
    assert [c["state"] for c in second["cells"]] == ["cached"] * 4 + ["failed"] * 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("cells/**/*")} == times, "no work was done"
    assert [c["artifacts"] for c in second["cells"]] == [c["artifacts"] for c in first["cells"]]
    assert call("sweep", "sweep.toml", "-o", "out", "-q", "--json", "--gate", "cells")[0] == 3

    np.save("x.npy", np.random.default_rng(1).standard_normal((8, 3, 8, 8), np.float32))
    code, refused, _ = call("sweep", "sweep.toml", "-o", "out", "--json", "-q")
    assert (code, refused["error"]["kind"]) == (1, "OutputExists")
    words = ("--precision", "fp16", "--target", "sm86", "--overwrite", "--json", "-q")
    code, third, _ = call("sweep", "sweep.toml", "-o", "out", *words)
    assert [c["state"] for c in third["cells"]] == ["done", "failed"]


@pytest.mark.slow
@needs.RTX
def test_what_a_store_keeps_is_not_built_again_by_another_sweep(folder):
    Path("sweep.toml").write_text(f'models = "net.onnx"\nprecisions = "fp16"\ncalib_data = "x.npy"\n{QUICK}')
    (folder / "store").mkdir()
    engines = []
    for name, kept in (("first", False), ("second", True)):
        words = ("-o", name, "--store", "store", "--target", "sm86", "--json", "-q")
        code, found, _ = call("sweep", "sweep.toml", *words)
        (one,) = found["cells"][0]["artifacts"]
        assert (code, found["done"], one["kept"]) == (0, 1, kept)
        report = json.loads((Path(name) / found["cells"][0]["report"]).with_suffix(".json").read_text())
        assert report["build-engine"]["kept"] == kept
        engines.append((Path(name) / found["cells"][0]["folder"] / one["path"]).read_bytes())
    assert engines[0] == engines[1]
    assert {path.suffix for path in Path("store/kept").rglob("*") if path.is_file()} == {".kept"}


@pytest.mark.slow
@needs.RTX
def test_a_cell_is_a_run(folder):
    """The halves in two processes leave what `run` leaves in one."""
    words = ("--precision", "int8", "--target", "sm86", "--calib-data", "x.npy")
    rest = ("--search-plans", "0", "--warmup-ms", "1", "--duration-s", "0.02", "-q", "--json")
    assert call("run", "net.onnx", *words, *rest, "-o", "alone")[0] == 0
    Path("sweep.toml").write_text(QUICK)
    assert call("sweep", "sweep.toml", "--model", "net.onnx", *words, "-o", "out", "-q", "--json")[0] == 0
    cells = Path("out/cells/net.onnx/int8-sm86")
    made = {path.name for path in cells.iterdir()}
    assert made == {path.name for path in Path("alone").iterdir()} | {"cell.json", "task.log"}
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.engine.onnx"):
        assert (cells / name).read_bytes() == (Path("alone") / name).read_bytes()
    ours, theirs = (json.loads((at / "report.json").read_text()) for at in (cells, Path("alone")))
    for key in ("export", "quantize", "parity", "recommendation"):
        assert ours[key] == theirs[key], key
    assert ours["inspect"]["plans"][0] == theirs["inspect"]["plans"][0]


@pytest.mark.slow
def test_a_sweep_without_any_result_fails(folder):
    code, found, _ = call("sweep", "--model", "broken.onnx", "--calib-data", "x.npy", "-o", "out", "--json")
    assert code == 3
    assert found["failed"] == 1
