"""Help that fits a screen: flags in sections, what matters first, choices shown, near misses named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy.cli import main
from se_deploy.cli.main import COMMANDS
from se_deploy.cli.main import commands as group
from se_deploy.cli.sections import HELP_WIDTH, Section

SCREEN = 60  # lines
MOST_FIRST = 12  # "the ten that matter", give or take


def said(capsys, *words):
    code = main([str(word) for word in words], standalone_mode=False)
    out, err = capsys.readouterr()
    return code, out, err


def shown(name):
    return [p for p in group.get_command(None, name).params if isinstance(p, click.Option) and not p.hidden]


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(HELP_WIDTH + 2))  # click leaves two columns free


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_names_every_flag(name, capsys, wide):
    _, out, _ = said(capsys, name, "--help")
    lines = out.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= HELP_WIDTH
    words = set(out.replace("/", " ").replace(",", " ").split())
    assert [o.opts for o in shown(name) if max(o.opts, key=len) not in words] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_explains_every_flag_in_a_section(name, capsys, wide):
    _, out, _ = said(capsys, name, "--help-all")
    text = " ".join(out.split())
    assert [o.opts for o in shown(name) if " ".join(o.help.split())[:25] not in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_section(name):
    """A new one joins the section of its group, or names `section=` where it is made (CONTRIBUTING.md)."""
    command = group.get_command(None, name)
    without = {o.name for o in shown(name)} - command.sections.keys()
    assert without <= {"help_all"}, f"no section: {sorted(without)}"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_comes_first_is_short(name):
    assert len(group.get_command(None, name).first) <= MOST_FIRST


@pytest.mark.parametrize(
    ("name", "flag", "choice"),
    [
        ("run", "--policy", "portable"),
        ("run", "--target", "orin-nano-super"),
        ("export", "--rewrites", "hoist-squeeze-1x1"),
        ("run", "--precision", "[fp32|bf16|fp16|int8]"),
    ],
)
def test_choices_are_listed_and_not_broken_at_hyphens(name, flag, choice, capsys, wide):
    _, out, _ = said(capsys, name, "--help-all")
    behind = out.partition(f"  {flag} ")[2].partition("\n  --")[0]
    assert choice in behind


def test_the_sections_are_those_that_commands_use():
    used = {section for name in COMMANDS for section in group.get_command(None, name).sections.values()}
    assert used == set(Section)


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir.save(plan_graphs.se_net(), tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["expotr"], "export"),
        (["inspect", "net.onnx", "--targte", "sm86"], "--target"),
        (["inspect", "net.onnx", "--target", "orin-nanno"], "orin-nano"),
        (["export", "net.onnx", "-o", "o.onnx", "--rewrites", "hoist-sqeeze-1x1"], "hoist-squeeze-1x1"),
        (["quantize", "net.onnx", "-o", "o.onnx", "--policy", "portabel"], "portable"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_a_near_miss_names_what_was_meant(words, meant, net, capsys):
    code, _, err = said(capsys, *words)
    assert code in {1, 2}
    assert meant in err.lower().partition("did you mean")[2].partition("\n")[0]
    assert not Path("o.onnx").exists()


def test_a_flag_without_effect_is_taken_with_a_warning(net, capsys):
    words = ["profile", "net.onnx", "--warmup-ms", "0", "--duration-s", "0.01", "--opset", "17", "--json"]
    code, out, err = said(capsys, *words)
    assert code == 0, err
    assert json.loads(out)["warnings"][0] == "--opset has no effect on this command"
    assert "warning: --opset has no effect on this command" in err
    assert "--opset" not in said(capsys, "profile", "--help-all")[1]


def completed(shell, *words):
    """What the shell is offered for the last word."""
    typed = {"COMP_WORDS": " ".join(["se-deploy", *words])}
    typed["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words))
    done = subprocess.run(
        [sys.executable, "-c", "from se_deploy.cli import main; main()"],
        env={**os.environ, **typed, "_SE_DEPLOY_COMPLETE": f"{shell}_complete"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_completes_flags(shell, capsys):
    code, out, _ = said(capsys, "completion", shell)
    assert code == 0
    assert "_SE_DEPLOY_COMPLETE" in out
    assert "--target" in completed(shell, "inspect", "--tar")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["export", "ne"], "file"),
        (["inspect", "--runtime", "onnx"], "onnxruntime"),
        (["inspect", "--target", "orin-na"], "orin-nano-super"),
        (["run", "--precision", "fp"], "fp16"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_what_a_command_takes_is_completed(words, offered):
    assert offered in completed("bash", *words)
