"""What of a compiler's answers is kept for who asks the same."""

from pathlib import Path

import pytest

from se_deploy import once
from se_deploy.backends.tensorrt import answers

FINE = {"ok": True, "skipped_tactics": 0, "layers": ["one"]}


class Asked:
    """A compiler that builds a new engine each time, and says `reply` of it."""

    def __init__(self, folder, reply):
        self.folder, self.reply, self.times = folder, reply, 0

    def __call__(self, request):
        self.times += 1
        assert Path(request["onnx"]).read_bytes() == b"a graph"
        if self.reply["ok"] and request["engine"] is not None:
            Path(request["engine"]).write_bytes(f"engine {self.times}".encode())
        return self.reply

    def answer(self, *, engine=True, graph=b"a graph", **request):
        paths = {"onnx": str(self.folder / "m.onnx"), "engine": str(self.folder / "e") if engine else None}
        with once.kept_in(self.folder / "kept"):
            return answers.answer({**paths, **request}, graph, {"version": "1"}, self)


def test_who_asks_the_same_gets_the_same_engine_and_all_that_was_said_of_it(tmp_path):
    asked = Asked(tmp_path, FINE)
    first, second = asked.answer(targets=["sm86"]), asked.answer(targets=["sm86"])
    assert (first.reply, first.engine, first.kept) == (FINE, b"engine 1", False)
    assert (second.reply, second.engine, second.kept) == (FINE, b"engine 1", True)
    assert asked.answer(targets=["sm89"]).engine == b"engine 2"


def test_an_engine_answers_what_is_planned_and_a_plan_no_engine(tmp_path):
    asked = Asked(tmp_path, FINE)
    assert asked.answer(engine=False) == answers.Answer(FINE, None, kept=False)
    assert asked.answer(engine=True).engine == b"engine 2"
    assert asked.answer(engine=False).kept
    assert asked.times == 2


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize(
    "reply", [FINE | {"skipped_tactics": 3}, {"ok": False, "reason": "out of memory", "skipped_tactics": 0}]
)
def test_what_want_of_memory_made_is_asked_again(tmp_path, reply, engine):
    asked = Asked(tmp_path, reply)
    for time in (1, 2):
        got = asked.answer(engine=engine)
        assert (got.reply, got.kept) == (reply, False)
        assert got.engine == (f"engine {time}".encode() if reply["ok"] and engine else None)
    assert asked.times == 2
