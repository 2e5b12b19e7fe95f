"""How far INT8 layers follow on each other in INT8, by TensorRT's published Q/DQ and fusion rules."""

from se_deploy.quantization.chain.findings import Break, Chain, End
from se_deploy.quantization.chain.linting import lint, lint_breaks
from se_deploy.quantization.chain.modelled import ModelledPlanner
from se_deploy.quantization.chain.rules import RULES, Rule
from se_deploy.quantization.chain.storage import moved, uses

__all__ = [
    "RULES",
    "Break",
    "Chain",
    "End",
    "ModelledPlanner",
    "Rule",
    "lint",
    "lint_breaks",
    "moved",
    "uses",
]
