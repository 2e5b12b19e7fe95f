"""What a compiler answered, kept by everything that it was asked (`once`): a reply, and an engine with it.

An engine's reply says what was planned too, so that a plan of the same graph is not made again. The other way
round an engine has to be built: a plan leaves none.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_deploy import once
from se_deploy.schema import tool_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PATHS = ("onnx", "engine")
"""What of a request says where files are, and nothing of what is in them."""

_BETWEEN = b"\n"  # the reply, which is one line of JSON, and the engine


@dataclass(frozen=True, slots=True)
class Answer:
    """A compiler's reply and its engine; None where a plan was asked for, or the compiler refused."""

    reply: dict[str, Any]
    engine: bytes | None
    kept: bool  # it was given before


class _NotKept(Exception):
    """An answer for this time alone: a refusal, or an engine that want of memory made slower."""

    def __init__(self, reply: dict[str, Any], engine: bytes | None) -> None:
        super().__init__()
        self.answer = Answer(reply, engine, kept=False)


def answer(
    request: dict[str, Any],
    onnx: bytes,
    compiler: Mapping[str, object],
    ask: Callable[[dict[str, Any]], dict[str, Any]],
) -> Answer:
    """Return the answer to a request about the graph `onnx`: the one kept, or what `ask` gives now.

    `compiler`: what makes its answers those of no other. Raises: what `ask` raises; CannotWrite.
    """
    facts: dict[str, object] = {
        "request": {name: value for name, value in request.items() if name not in _PATHS},
        "onnx": hashlib.sha256(onnx).hexdigest(),
        "compiler": dict(compiler),
        "tool": tool_version(),
        "machine": (platform.system(), platform.machine()),
    }
    build, plan = (once.key_of({**facts, "what": what}) for what in ("build", "plan"))
    built = request["engine"] is not None

    def make() -> bytes:
        Path(request["onnx"]).write_bytes(onnx)
        reply = ask(request)
        if not reply["ok"]:
            raise _NotKept(reply, None)
        engine = Path(request["engine"]).read_bytes() if built else b""
        if reply["skipped_tactics"]:
            raise _NotKept(reply, engine if built else None)
        return json.dumps(reply).encode() + _BETWEEN + engine

    try:
        known = None if built else once.known(build)
        made = once.made(build if built else plan, make) if known is None else once.Made(known, kept=True)
    except _NotKept as e:
        return e.answer
    reply, _, engine = made.data.partition(_BETWEEN)
    return Answer(json.loads(reply), engine if built else None, made.kept)
