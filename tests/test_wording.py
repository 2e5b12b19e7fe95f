"""A count is written with its noun in the right number: one node, and not one nodes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import se_deploy
from se_deploy.errors import counted

NEVER_ONE = (" inputs", " images ", " kernels: ", " values, not one")
"""Behind a condition that leaves none, or two and more."""


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "node", "0 nodes"), (1, "node", "1 node"), (2, "node", "2 nodes"), (2, "class", "2 classes")],
)
def test_a_noun_has_the_number_of_its_count(number, noun, text):
    assert counted(number, noun) == text


def test_a_verb_has_the_number_of_its_count():
    assert counted(1, "node", ("stays", "stay")) == "1 node stays"
    assert counted(3, "node", ("stays", "stay")) == "3 nodes stay"


def plurals(path):
    """What stands in a file\'s texts behind a length and begins with a noun in the plural."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                is_length = isinstance(value.value, ast.Call) and ast.unparse(value.value).startswith("len(")
                if is_length and re.match(r" (\w+ )?[a-z]+s\b", text.value):
                    yield text.value


def test_no_text_writes_a_length_before_a_plural():
    root = Path(se_deploy.__file__).parent
    found = {(str(path.relative_to(root)), text) for path in root.rglob("*.py") for text in plurals(path)}
    assert not {(path, text) for path, text in found if not text.startswith(NEVER_ONE)}
