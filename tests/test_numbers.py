"""NaN keeps no limit and breaks none, so that no flag takes it, nor a number without end."""

from __future__ import annotations

import click
import pytest

from se_deploy.cli import main as cli
from se_deploy.cli.main import commands
from se_deploy.cli.types import Floats


def flags():
    context = click.Context(commands)
    for name in commands.list_commands(context):
        for param in commands.get_command(context, name).params:
            if isinstance(param.type, (click.types.FloatParamType, Floats)):
                yield pytest.param(param, id=f"{name} {param.opts[0]}")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("param", list(flags()))
def test_a_flag_takes_finite_numbers_only(param, text):
    with pytest.raises(click.BadParameter):
        param.type.convert(text, param, None)


@pytest.mark.parametrize("words", [("--mean", "nan,0,0"), ("--crop", "nan")])
def test_such_a_number_is_a_mistake_in_use(words, tmp_path, capsys):
    net, image = tmp_path / "net.onnx", tmp_path / "x.png"
    for path in (net, image):
        path.touch()
    assert cli(["predict", str(net), str(image), *words], standalone_mode=False) == 2
    assert words[0] in capsys.readouterr().err


def test_accuracy_cannot_drop_by_less_than_nothing(tmp_path, capsys):
    net = tmp_path / "net.onnx"
    net.touch()
    words = ["quantize", str(net), "--calib-data", str(tmp_path), "-o", str(tmp_path / "q.onnx")]
    assert cli([*words, "--max-drop", "-5"], standalone_mode=False) == 2
    assert "--max-drop" in capsys.readouterr().err
