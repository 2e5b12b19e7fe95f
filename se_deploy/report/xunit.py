"""Gate results as JUnit XML, the form that every CI system shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.errors import one_line
from se_deploy.report import facts, units
from se_deploy.schema.results import Check, Parity

if TYPE_CHECKING:
    from se_deploy.schema.results import Candidate, ErrorFields, OutputParity, Run

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


def junit(result: Parity | Check | Run) -> str:
    """Write a result of `parity`, `check`, `run` or `demo` as a JUnit document.

    Compared outputs are a case each, grouped by candidate; `gates` of `check`, or `verdicts` of a run, one
    per gate and file. Null is a skipped case.
    """
    suites = ET.Element("testsuites", name="se-deploy")
    outputs = [case for parity in _compared(result) for case in _outputs(parity)]
    for name, cases in (("parity", outputs), ("gates", _gates(result))):
        if cases:
            _suite(suites, name, cases)
    for key in ("tests", "failures", "errors", "skipped"):
        suites.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    return _document(suites)


def junit_error(command: str, error: ErrorFields) -> str:
    """Write that a command judged nothing, as one case with an error: no older verdict may stand for it."""
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    suites = ET.Element("testsuites", {"name": "se-deploy", **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": command, **counts, "time": "0"})
    named = {"classname": f"se-deploy.{command}", "name": command}
    entry = ET.SubElement(suite, "testcase", named, time="0")
    said = ET.SubElement(entry, "error", message=_named(error.message), type=error.kind)
    said.text = _text(f"{error.message}\n{error.hint}")
    return _document(suites)


def _document(suites: ET.Element) -> str:
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _compared(result: Parity | Check | Run) -> tuple[Parity, ...]:
    """Return the comparisons in a result: `check` has one per table of its configuration."""
    if isinstance(result, Parity):
        return (result,)
    if isinstance(result, Check):
        return result.parity
    return (result.parity,) if result.parity else ()


def _outputs(parity: Parity) -> list[_Case]:
    cases = []
    for candidate in parity.candidates:
        path = candidate.path
        for output in candidate.outputs:
            mine = [text for text in candidate.failures if f"'{output.name}'" in text]
            lines = [*_measures(output), *_context(candidate)]
            message = "; ".join(mine) or f"output '{output.name}' is outside the tolerance"
            cases.append(_Case(path, output.name, output.passed, message, "\n".join(lines)))
        shown = [case.passed for case in cases if case.group == path]
        if not shown or (not candidate.passed and False not in shown):
            message = "; ".join(candidate.failures) or "the candidate failed"
            cases.append(_Case(path, "candidate", candidate.passed, message, "\n".join(_context(candidate))))
    return cases


def _measures(output: OutputParity) -> list[str]:
    return [
        f"largest error: {units.plain(output.max_abs)}",
        f"largest error over the output's range: {units.plain(output.max_rel)}",
        f"cosine: {units.cosine(output.cosine)}",
        f"SQNR: {units.decibel(output.sqnr_db)}",
        *units.agreements(output),
    ]


def _context(candidate: Candidate) -> list[str]:
    lines = []
    if candidate.preset:
        lines.append(f"tolerance preset: {candidate.preset}")
    if candidate.checked_as:
        lines.append(f"checked as: {candidate.checked_as}")
    elif candidate.rounding:
        lines.append(f"evaluated: {candidate.rounding}")
    where = candidate.first_divergence
    if where:
        lines.append(f"first divergence: {where.op_type} '{where.node}', tensor '{where.tensor}'")
    return lines


def _gates(result: Parity | Check | Run) -> list[_Case]:
    if isinstance(result, Check):
        return [
            _Case(
                group=one.gate,
                name=one.name,
                passed=one.passed,
                message="; ".join(one.details) or f"{one.gate} failed",
                details="\n".join(one.details),
            )
            for one in result.gates
        ]
    if isinstance(result, Parity) or result.verdicts is None:
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
        named = {"classname": _named(group), "name": _named(case.name)}
        entry = ET.SubElement(suite, "testcase", named, time="0")
        if case.passed is False:
            failure = ET.SubElement(entry, "failure", message=_named(case.message), type="GateFailed")
            failure.text = _text(case.details or case.message)
        elif case.passed is None:
            ET.SubElement(entry, "skipped", message="not judged")
        elif case.details:
            ET.SubElement(entry, "system-out").text = _text(case.details)


def _text(text: str) -> str:
    """Escape the control characters of each line: names in files are other people's."""
    return "\n".join(_named(line) for line in text.split("\n"))


def _named(text: str) -> str:
    """Escape control characters, line feeds too, and replace what else XML 1.0 cannot hold."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", one_line(text))
