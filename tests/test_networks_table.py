"""The script behind the table of docs/networks.md: rows as they are kept, and whole runs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")

import json
from pathlib import Path

import project_scripts
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = ("speech", "video", "two inputs")
LARGE = (
    "silero-vad", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large", "efficientnet_b0",
    "regnety_008", "PP-OCRv4 detector", "PP-OCRv5 recognizer", "ECAPA-TDNN", "scSE U-Net", "SE-Res2Net-50",
    "coatnet_0_rw_224",
)  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    with project_scripts.loaded("networks_table") as module:
        yield module


def outcome(table, **changed):
    fields = {
        "passed": True, "sqnr_db": 41.26, "kernels": 9, "activation_bytes": 2_060_000, "fused": 1,
        "found_precision": "fp16", **changed,
    }  # fmt: skip
    return table.Outcome(**fields)


def made(table, **changed):
    fields = {
        "name": "a net", "command": "se-deploy run a", "shapes": {"x": (1, 3, 8, 8)}, "blocks": {"se": 2},
        "engines": {"fp16": outcome(table), "int8": outcome(table, passed=False, sqnr_db=None)},
        "macs_int8": 0.957, "refusal": None, "seconds": 1.0, "date": "2026-11-27", "versions": {}, **changed,
    }  # fmt: skip
    return table.Row(**fields)


def test_a_row_says_what_passed_and_what_did_not(table):
    line = table.markdown([made(table)]).splitlines()[2]
    assert line == (
        "| a net | x 1x3x8x8 | 2 se | pass, 41.3 dB | 2.06 MB, 9 kernels | FAIL | 2.06 MB, 9 kernels "
        "| 95.7 % |  |"
    )


def test_a_refusal_is_one_sentence_in_its_cell(table):
    refusal = table._refusal({"error": {"message": "no: a || b; and more", "hint": "leave it"}})
    assert refusal == "no: a || b; leave it"
    line = table.markdown([made(table, engines={}, blocks={}, macs_int8=None, refusal=refusal)]).splitlines()[
        2
    ]
    assert line == r"| a net | x 1x3x8x8 | none | not built |  | not built |  |  | no: a \|\| b; leave it |"


def test_every_network_has_a_row_and_a_test(table):
    names = [case.name for case in table.CASES]
    assert len(set(names)) == len(names)
    assert {name.split(",")[0] for name in names} == {*SMALL, *LARGE}


def rows(table, folder, name, *words):
    done = CliRunner().invoke(table.main, ["-o", str(folder), "--only", name, *words], catch_exceptions=False)
    assert done.exit_code == 0
    return {row["name"]: row for row in json.loads((folder / "networks.json").read_text())["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_go_all_the_way_and_are_not_run_twice(table, tmp_path, name, monkeypatch):
    row = rows(table, tmp_path, name)[name]
    assert {p: (e["passed"], e["found_precision"]) for p, e in row["engines"].items()} == {
        "fp16": (True, "fp16"), "int8": (True, "int8"),
    }  # fmt: skip
    assert (row["blocks"], row["refusal"]) == ({"se": 1}, None)
    monkeypatch.setattr(table, "row", None)  # would fail if it were called
    assert rows(table, tmp_path, name)[name] == row
    path = tmp_path / f"{table._slug(name)}.json"
    kept = table.msgspec.json.decode(path.read_bytes(), type=table.Row)
    wrong = {p: table.dataclasses.replace(e, activation_bytes=1) for p, e in kept.engines.items()}
    path.write_bytes(table.msgspec.json.encode(table.dataclasses.replace(kept, engines=wrong)))
    again = rows(table, tmp_path, name, "--recount")[name]
    assert again.pop("counted") is not None
    assert again == {k: v for k, v in row.items() if k != "counted"}


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_pass_or_say_in_a_sentence_what_the_compiler_cannot(table, tmp_path, name):
    for row in rows(table, tmp_path, name).values():
        assert row["engines"] or "refused the network" in row["refusal"]
        assert all(engine["passed"] for engine in row["engines"].values())
