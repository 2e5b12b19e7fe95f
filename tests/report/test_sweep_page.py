"""The page of a sweep: what is recommended, what lies on the front, where its links lead."""

import re

import sweep_sample

from se_deploy import report


def page():
    return report.sweep_html(sweep_sample.sweep())


def test_the_front_and_the_recommendation_are_marked():
    text = page()
    rows = re.findall(r'<tr><th scope="row" class="name"><a href="cells[^>]*>.*?</tr>', text, re.DOTALL)
    front = {re.search(r"(\w+).engine", row)[0] for row in rows if "<td>front</td>" in row}
    assert front == {"int8.engine", "fp16.engine"}
    by_sweep = [row for row in rows if ">sweep recommends<" in row]
    assert len(by_sweep) == 2, "one for each target"
    assert "int8.engine" in by_sweep[0]
    by_run = [row for row in rows if ">run recommends<" in row]
    assert ["fp16.engine" in row and "int8" in row for row in by_run] == [True], "of the cell's own two"
    assert "0.6 ms per image, measured; top-1 80.50 %" in text


def test_links_lead_to_the_reports_of_the_runs():
    links = re.findall(r'href="(cells/[^"]*)"', page())
    assert "cells/one/int8-sm86/report.html" in links
    assert "cells/%3Cb%3Etwo%3C/b%3E%20%26%20%27more%27/fp16-sm86/report.html" in links


def test_names_and_reasons_are_no_markup():
    text = page()
    assert "<b>two" not in text
    assert "no &lt;data&gt;" in text


def test_a_sweep_without_a_result_has_a_page():
    failed = tuple(one for one in sweep_sample.CELLS if one.state == "failed")
    text = report.sweep_html(sweep_sample.sweep(failed))
    assert "no artifact passes its verdicts" in text
    assert "No artifact has both an accuracy and a time." in text or "matplotlib is not installed" in text


def test_a_planned_time_keeps_no_measured_one_from_the_front():
    """A roofline is always short of what is measured."""
    planned = sweep_sample.artifact("fp16", 0.5, 0.81)
    measured = sweep_sample.artifact("int8", 0.6, 0.80, ms_from="measured")
    text = report.sweep_html(
        sweep_sample.sweep((sweep_sample.cell("one", "int8", "sm86", planned, measured),))
    )
    assert text.count("<td>front</td>") == 2
