"""Gate results as JUnit XML, the form that every CI system shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.report import facts, units, values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from se_deploy.report.values import Json

_ILLEGAL = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # XML 1.0, section 2.2


@dataclass(frozen=True, slots=True)
class _Case:
    """One test case; `passed` None is a skipped one."""

    group: str
    name: str
    passed: bool | None
    message: str
    details: str


def junit(result: Mapping[str, Any]) -> str:
    """Write a result of `parity`, `check`, `run` or `demo` as a JUnit document.

    Compared outputs are a case each, grouped by candidate; `gates` of `check`, or `verdicts` of a run, one
    per gate and file. Null is a skipped case.
    """
    suites = ET.Element("testsuites", name="se-deploy")
    compared = [result, *_listed(result.get("parity"))]  # `check` has one per table of its configuration
    outputs = [case for parity in compared for case in _outputs(parity)]
    for name, cases in (("parity", outputs), ("gates", _gates(result))):
        if cases:
            _suite(suites, name, cases)
    for key in ("tests", "failures", "errors", "skipped"):
        suites.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _outputs(parity: object) -> list[_Case]:
    cases = []
    for candidate in values.objects(values.at(parity, "candidates")):
        path = str(candidate.get("path"))
        failures = values.texts(candidate.get("failures"))
        for output in values.objects(candidate.get("outputs")):
            name = str(output.get("name"))
            mine = [text for text in failures if f"'{name}'" in text]
            lines = [*_measures(output), *_context(candidate)]
            message = "; ".join(mine) or f"output '{name}' is outside the tolerance"
            cases.append(_Case(path, name, values.flag(output.get("passed")), message, "\n".join(lines)))
        passed = values.flag(candidate.get("passed"))
        shown = [case.passed for case in cases if case.group == path]
        if not shown or (passed is False and False not in shown):
            message = "; ".join(failures) or "the candidate failed"
            cases.append(_Case(path, "candidate", passed, message, "\n".join(_context(candidate))))
    return cases


def _measures(output: Json) -> list[str]:
    return [
        f"largest error: {units.plain(output.get('max_abs'))}",
        f"largest error over the output's range: {units.plain(output.get('max_rel'))}",
        f"cosine: {units.cosine(output.get('cosine'))}",
        f"SQNR: {units.decibel(output.get('sqnr_db'))}",
        f"top-1 agreement: {units.percent(output.get('top1_agreement'))}",
    ]


def _context(candidate: Json) -> list[str]:
    lines = []
    if candidate.get("preset"):
        lines.append(f"tolerance preset: {candidate['preset']}")
    if candidate.get("checked_as"):
        lines.append(f"checked as: {candidate['checked_as']}")
    elif candidate.get("rounding"):
        lines.append(f"evaluated: {candidate['rounding']}")
    where = candidate.get("first_divergence")
    if where:
        lines.append(
            f"first divergence: {values.at(where, 'op_type')} '{values.at(where, 'node')}', "
            f"tensor '{values.at(where, 'tensor')}'"
            if isinstance(where, dict)
            else f"first divergence: {where}"
        )
    return lines


def _gates(result: Json) -> list[_Case]:
    gates = values.objects(result.get("gates"))
    if gates:
        return [
            _Case(
                group=str(entry.get("gate")),
                name=str(entry.get("name") or entry.get("gate")),
                passed=values.flag(entry.get("passed")),
                message="; ".join(values.texts(entry.get("details"))) or f"{entry.get('gate')} failed",
                details="\n".join(values.texts(entry.get("details"))),
            )
            for entry in gates
        ]
    if not isinstance(result.get("verdicts"), dict):
        return []
    return [
        _Case("verdicts", v.gate, v.passed, f"the {v.gate} gate failed", "") for v in facts.verdicts(result)
    ]


def _suite(parent: ET.Element, name: str, cases: list[_Case]) -> None:
    suite = ET.SubElement(
        parent,
        "testsuite",
        name=name,
        tests=str(len(cases)),
        failures=str(sum(case.passed is False for case in cases)),
        errors="0",
        skipped=str(sum(case.passed is None for case in cases)),
        time="0",
    )
    for case in cases:
        group = f"se-deploy.{name}.{case.group}" if case.group != name else f"se-deploy.{name}"
        entry = ET.SubElement(suite, "testcase", classname=_legal(group), name=_legal(case.name), time="0")
        if case.passed is False:
            failure = ET.SubElement(entry, "failure", message=_legal(case.message), type="GateFailed")
            failure.text = _legal(case.details or case.message)
        elif case.passed is None:
            ET.SubElement(entry, "skipped", message="not judged")
        elif case.details:
            ET.SubElement(entry, "system-out").text = _legal(case.details)


def _legal(text: str) -> str:
    """Replace what XML 1.0 cannot hold, such as a NUL in a tensor's name."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
