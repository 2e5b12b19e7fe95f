"""Results of the library show themselves as the command line shows them."""

import plan_graphs
import pytest

import se_deploy
from se_deploy import graph
from se_deploy.cli import main
from se_deploy.tables.base import Grid


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    return "net.onnx"


def printed(capsys, *words):
    capsys.readouterr()
    assert main(words, standalone_mode=False) == 0
    return capsys.readouterr().out.rstrip("\n")


def test_print_is_what_the_command_prints(net, capsys):
    inspected = se_deploy.inspect(net)
    assert str(inspected) == printed(capsys, "inspect", net)
    exported = se_deploy.export(net, "a.onnx")
    assert str(exported) == printed(capsys, "export", net, "-o", "a.onnx", "--overwrite")
    assert repr(exported) == "<ExportResult: Exported a.onnx>"
    assert "\n" not in repr(inspected)
    assert len(repr(inspected)) < 100


def test_a_notebook_gets_tables(net):
    result = se_deploy.inspect(net)
    html = result._repr_html_()
    assert html.count("<table>") == html.count("</table>") == len(result.tables())
    assert "<th>kind</th>" in html


def test_names_of_others_are_no_markup():
    grid = Grid("<b>", ("<i>",), caption="&")
    grid.add("<script>\x1b[31m")
    html = grid.html()
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "\x1b" not in html
