"""What code asks of TensorRT's bindings, read off its syntax tree, one recorded version at a time.

Bindings are untyped, so a value is known by its name: `KINDS` says which class a name stands for. Branches
that ask `hasattr(trt, ...)` are followed as that version would answer.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

MODULE = "module"
KINDS = {
    "trt": MODULE, "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition",
    "parser": "OnnxParser", "error": "ParserError", "engine": "ICudaEngine", "runtime": "Runtime",
    "context": "IExecutionContext", "inspector": "EngineInspector", "profile": "IOptimizationProfile",
    "tensor": "ITensor", "serialized": "IHostMemory", "kernels": "IRuntimeCache",
    "runtime_config": "IRuntimeConfig", "made": "IExecutionContext", "refitter": "Refitter",
    "parser_refitter": "OnnxParserRefitter",
    "cache": "ITimingCache", "empty": "ITimingCache", "registry": "IPluginRegistry",
}  # fmt: skip
"""The class behind a name, with or without `self.` and underscores in front."""


@dataclass
class Walk:
    """One module of the code, walked with the members that one version has."""

    has: dict  # as recorded
    bare: frozenset[str] = frozenset(KINDS)  # names that are bindings without `self.` in front
    missing: list[str] = field(default_factory=list)  # "line 12: Builder.nothing"
    used: set[str] = field(default_factory=set)

    def run(self, tree: ast.Module) -> Walk:
        self.block(tree.body)
        return self

    def block(self, statements) -> bool:
        """Walk statements; True where the end is not reached."""
        for statement in statements:
            if isinstance(statement, ast.If):
                answer = self.answer(statement.test)
                self.expression(statement.test)
                taken = [] if answer is False else statement.body
                other = [] if answer is True else statement.orelse
                ends, other_ends = self.block(taken), self.block(other)
                if (answer is True and ends) or (answer is False and other_ends):
                    return True
                if answer is None and statement.orelse and ends and other_ends:
                    return True
                continue
            for child in self.parts(statement):
                self.expression(child)
            for name in ("body", "orelse", "finalbody"):
                self.block(getattr(statement, name, []))
            for handler in getattr(statement, "handlers", []):
                self.block(handler.body)
            if isinstance(statement, ast.Return | ast.Raise | ast.Continue):
                return True
        return False

    @staticmethod
    def parts(statement):
        """Yield the expressions of a statement itself, not those of the statements in it."""
        for child in ast.iter_child_nodes(statement):
            if not isinstance(child, ast.stmt | ast.ExceptHandler):
                yield child

    def answer(self, test) -> bool | None:
        """What `hasattr(trt, "NAME")` answers, alone or behind `not`, `and`, `or`; None for anything else."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.answer(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            answers = [self.answer(value) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in answers:
                return decisive
            return None if None in answers else not decisive
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
            kind = self.kind(test.args[0])
            if kind is not None and isinstance(test.args[1], ast.Constant):
                return test.args[1].value in self.members(kind)
        return None

    def expression(self, node) -> None:
        if isinstance(node, ast.IfExp):
            answer = self.answer(node.test)
            for part, dead in ((node.test, None), (node.body, False), (node.orelse, True)):
                if dead is None or answer is not dead:
                    self.expression(part)
            return
        if isinstance(node, ast.Attribute):
            kind = self.kind(node.value)
            if kind is not None:
                self.ask(kind, node.attr, node.lineno)
        for child in ast.iter_child_nodes(node):
            self.expression(child)

    def ask(self, kind, name, line) -> None:
        what = f"{kind}.{name}"
        self.used.add(what)
        if not name.startswith("__") and name not in self.members(kind):
            self.missing.append(f"line {line}: {what}")

    def members(self, kind):
        if kind == MODULE:
            return {*self.has["names"], "nptype"}
        if kind in self.has["enums"]:
            return self.has["enums"][kind]
        return self.has["classes"].get(kind, {})

    def kind(self, node) -> str | None:
        """The class that an expression gives: by its name, as the module's member, as a method's result."""
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if isinstance(node, ast.Attribute) and (owner := self.kind(node.value)) is not None:
                return name if owner == MODULE and name in self.has["names"] else None
            if isinstance(node, ast.Name):
                return KINDS.get(name) if name in self.bare else None
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return KINDS.get(name.lstrip("_"))
        if isinstance(node, ast.Call):
            return self.result(node.func)
        return None

    def result(self, function) -> str | None:
        if not isinstance(function, ast.Attribute):
            return None
        owner = self.kind(function.value)
        if owner == MODULE:
            known = {"get_plugin_registry": "IPluginRegistry"}
            return function.attr if function.attr in self.has["classes"] else known.get(function.attr)
        signature = self.members(owner).get(function.attr) if owner in self.has["classes"] else None
        given = str(signature).rpartition("-> ")[2].rpartition(":")[2]
        return given if given in self.has["classes"] else None
