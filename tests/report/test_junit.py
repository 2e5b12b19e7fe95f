import contextlib
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import sample
import use_graphs

from se_deploy import report
from se_deploy.cli.main import main
from se_deploy.commands import check as verb


def typed(fields):
    return sample.typed(fields, fields["schema"].split("/")[1])


def check(**fields):
    empty = {"config": "se-deploy.toml", "passed": False, "gates": [], "parity": [], "profile": []}
    return sample.head("check") | empty | fields


def cases(result):
    root = ET.fromstring(report.junit(typed(result)))  # noqa: S314 - our own document
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite"
        found = suite.findall("testcase")
        assert int(suite.get("tests")) == len(found)
        for key, tag in (("failures", "failure"), ("skipped", "skipped")):
            assert int(suite.get(key)) == sum(case.find(tag) is not None for case in found)
    for key in ("tests", "failures", "errors", "skipped"):
        assert int(root.get(key)) == sum(int(suite.get(key)) for suite in root)
    return {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}


def test_a_parity_result_is_a_case_per_output():
    found = cases(sample.report()["parity"])
    assert len(found) == 5
    assert all(case.find("failure") is None for case in found.values())
    out = found["se-deploy.parity.model.int8.engine", "output"].find("system-out").text
    assert "SQNR: 33.7 dB" in out
    assert "checked as: no GPU on this machine" in out


def test_a_failed_output_carries_its_reason_and_where_it_began():
    parity = sample.report()["parity"]
    broken = parity["candidates"][2]
    broken["outputs"][0]["passed"] = broken["passed"] = False
    broken["failures"] = ["'output': cosine 0.91 is below 0.98", "'other': not mine"]
    broken["first_divergence"] = {"tensor": "t", "node": "Conv:t", "op_type": "Conv", "relative_rms": 0.4}
    failure = cases(parity)["se-deploy.parity.model.int8.onnx", "output"].find("failure")
    assert failure.get("message") == "'output': cosine 0.91 is below 0.98"
    assert "first divergence: Conv 'Conv:t', tensor 't'" in failure.text


def test_where_fp16_is_rounded_stands_beside_a_candidate():
    parity = sample.report()["parity"]
    parity["candidates"][1]["rounding"] = "rounded at every FP16 tensor"
    texts = ["".join(case.itertext()) for case in cases(parity).values()]
    assert any("rounded at every FP16 tensor" in text for text in texts)


def test_a_failed_candidate_never_passes_because_its_outputs_do():
    parity = sample.report()["parity"]
    parity["candidates"][1] |= {"passed": False, "failures": ["accuracy fell by 2 points"]}
    parity["candidates"][2] |= {"outputs": []}
    found = cases(parity)
    failure = found["se-deploy.parity.model.fp16.onnx", "candidate"].find("failure")
    assert failure.get("message") == "accuracy fell by 2 points"
    assert found["se-deploy.parity.model.int8.onnx", "candidate"].find("failure") is None
    assert len(found) == 6


@pytest.mark.parametrize(("passed", "tag"), [(False, "failure"), (None, "skipped"), (True, None)])
def test_gates_fail_skip_or_pass(passed, tag):
    gate = {"gate": "fusion", "name": "sm86", "passed": passed, "details": ["2 of 9 blocks are split"]}
    case = cases(check(gates=[gate]))["se-deploy.gates.fusion", "sm86"]
    assert {child.tag for child in case} - {"system-out"} == ({tag} if tag else set())


def test_a_run_gives_its_verdicts_and_its_parity():
    found = cases(sample.report())
    assert found["se-deploy.gates.verdicts", "fusion"].find("failure") is not None
    assert found["se-deploy.gates.verdicts", "latency"].find("skipped") is not None
    assert ("se-deploy.parity.model.onnx", "output") in found


@pytest.mark.parametrize("name", ["<b>&\"'", "nul\x00bell\x07", "\ud800", "猫\N{CAT FACE}"])
def test_any_name_is_well_formed(name):
    parity = sample.report()["parity"]
    parity["candidates"][0]["outputs"][0]["name"] = name
    assert len(cases(parity)) == 5
    report.junit(typed(parity)).encode("utf-8")


def test_check_has_a_parity_result_per_table():
    gate = {"gate": "parity", "name": "model.onnx", "passed": True, "details": ["SQNR 127.9 dB"]}
    found = cases(check(gates=[gate], parity=[sample.report()["parity"]] * 2))
    assert ("se-deploy.gates.parity", "model.onnx") in found
    assert ("se-deploy.parity.model.onnx", "output") in found


def test_nothing_is_still_a_document():
    assert cases(check()) == {}


HOSTILE = "a\nb\tc\r\x1b[31m\x00\x85\u202e\uffff</testcase>&\"'"


def test_hostile_names_reach_junit_escaped():
    parity = sample.report()["parity"]
    candidate = parity["candidates"][1]
    candidate["path"] = f"{HOSTILE}.onnx"
    candidate["outputs"][0] |= {"name": HOSTILE, "passed": False}
    candidate["passed"] = False
    candidate["failures"] = [f"'{HOSTILE}': cosine 0.91 is below 0.98"]
    where = {"tensor": HOSTILE, "node": HOSTILE, "op_type": HOSTILE, "relative_rms": 1}
    candidate["first_divergence"] = where
    gate = {"gate": "fusion", "name": HOSTILE, "passed": False, "details": [HOSTILE]}
    for result in (parity, check(parity=[parity], gates=[gate])):
        text = report.junit(typed(result))
        assert set(text) & {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\uffff"} == {"\n"}
        text.encode("utf-8")
        found = cases(result)
        begins = "a\\nb\\tc\\r\\x1b[31m\\x00\\x85\\u202e"
        names = [name for _, name in found if name.startswith(begins)]
        assert len(names) == (1 if result is parity else 2)
        assert all(name.endswith("</testcase>&\"'") for name in names)
        failures = [failure for case in found.values() for failure in case.findall("failure")]
        assert failures
        attributes = [*found.values(), *failures]
        assert not any("\n" in value for one in attributes for value in one.attrib.values())


def test_a_run_that_judges_nothing_leaves_no_older_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        use_graphs.save(tmp_path / name)
    np.save("x.npy", np.zeros((2, 3, 8, 8), np.float32))
    gates = '[parity]\nreference = "a.onnx"\ncandidates = ["b.onnx"]\ndata = "x.npy"\n'
    Path("se-deploy.toml").write_text(gates)
    words = ("--junit", "j.xml", "--overwrite")
    assert main(["check", *words], standalone_mode=False) == 0
    Path("b.onnx").write_text("<damaged> & \x07")
    for command in (["check"], ["parity", "a.onnx", "b.onnx", "--data", "x.npy"]):
        Path("j.xml").write_text("of an earlier run")
        assert main([*command, *words], standalone_mode=False) == 1
        suites = ET.parse("j.xml").getroot()  # noqa: S314 - our own document
        assert (suites.get("tests"), suites.get("errors"), suites.get("failures")) == ("1", "1", "0")
        (case,) = suites.iter("testcase")
        assert (case.get("classname"), case[0].tag) == (f"se-deploy.{command[0]}", "error")
        assert case[0].get("type") == "BadModel"
        assert case[0].get("message") in capsys.readouterr().err


def told(path="j.xml"):
    """The one case of a report without a verdict: its class, and the type and text of its error."""
    (case,) = ET.parse(path).getroot().iter("testcase")  # noqa: S314 - our own document
    return case.get("classname"), case[0].get("type"), case[0].get("message")


MISTYPED = {
    "an unknown flag behind it": ("check", "--junit", "j.xml", "--overwrite", "--no-such-flag"),
    "an unknown flag in front": ("check", "--no-such-flag", "--overwrite", "--junit=j.xml"),
    "a value that is none": (
        "parity",
        "a",
        "b",
        "--data",
        ".",
        "--atol",
        "much",
        "--junit",
        "j.xml",
        "--overwrite",
    ),
    "a value of a switch": ("check", "--json=1", "--junit", "j.xml", "--overwrite"),
    "what is missing": ("parity", "--junit", "j.xml", "--overwrite"),
    "no value at all": ("parity", "--junit", "j.xml", "--overwrite", "--atol"),
    "named twice": ("check", "--junit", "i.xml", "--junit", "j.xml", "--overwrite", "too much"),
    "no such file": ("check", "--config", "no.toml", "--junit", "j.xml", "--overwrite"),
    "no such command": ("chek", "--junit", "j.xml", "--overwrite"),
}


@pytest.mark.parametrize("how", MISTYPED)
def test_a_command_that_is_not_understood_leaves_no_older_verdict(tmp_path, monkeypatch, capsys, how):
    """A CI that keeps the file showed the last run's pass for it."""
    monkeypatch.chdir(tmp_path)
    Path("j.xml").write_text("of an earlier run")
    assert main(MISTYPED[how], standalone_mode=False) == 2
    assert told()[:2] == (f"se-deploy.{MISTYPED[how][0]}", "Usage")
    assert told()[2] in capsys.readouterr().err
    assert os.listdir() == ["j.xml"]  # noqa: PTH208 - names are wanted


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--no-such-flag", "--junit", "j.xml"),
        ("check", "--no-such-flag", "--overwrite", "--", "--junit", "j.xml"),
        ("check", "--no-such-flag", "--config", "--junit", "j.xml", "--overwrite"),
        ("check", "--no-such-flag", "--config", "--overwrite", "--junit", "j.xml"),
        ("check", "--no-such-flag", "--overwrite", "--junit"),
        ("check", "--no-such-flag", "--overwrite", "--junit", "folder"),
        ("inspect", "no.onnx", "--junit", "j.xml", "--overwrite"),
    ],
)
def test_what_a_command_would_not_replace_stays_where_it_is_not_understood(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("j.xml").write_text("mine")
    Path("folder").mkdir()
    assert main(words, standalone_mode=False) == 2
    assert Path("j.xml").read_text() == "mine"
    assert not any(Path("folder").iterdir())


@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt(), MemoryError(), OSError(5, "broken"), ValueError("ours")]
)
def test_a_run_that_ends_otherwise_leaves_no_older_verdict(tmp_path, monkeypatch, fault):
    """Interrupted, out of memory, or by a fault of ours: the file still held the last run's pass."""
    monkeypatch.chdir(tmp_path)
    Path("j.xml").write_text("of an earlier run")
    Path("se-deploy.toml").write_text("")

    def fail(path):
        raise fault

    monkeypatch.setattr(verb, "read", fail)
    with contextlib.suppress(ValueError):
        assert main(["check", "--junit", "j.xml", "--overwrite"], standalone_mode=False) in {1, 130}
    classname, kind, message = told()
    assert (classname, kind) == ("se-deploy.check", "Unfinished")
    assert "came to no verdict" in message


def test_a_file_that_is_not_to_be_replaced_keeps_its_verdicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("j.xml").write_text("mine")
    assert main(["check", "--junit", "j.xml"], standalone_mode=False) == 1
    assert Path("j.xml").read_text() == "mine"
