"""Which compiler flags and kernel block sizes make a step faster, found by trying them."""

from flexjax.tune.compiled import CompiledStep
from flexjax.tune.evaluate import Candidate, Cost, Evaluator, Refused, Setting
from flexjax.tune.kernel import Attention, CompiledKernel
from flexjax.tune.measured import MeasuredStep
from flexjax.tune.search import Factor, Finding, SearchConfig, Trial, search
from flexjax.tune.set_file import set_file
from flexjax.tune.step import decode_program, decode_shape

__all__ = [
    # What is tried, and what it costs.
    "Candidate",
    "Cost",
    "Evaluator",
    "Refused",
    "Setting",
    # Three ways to know it.
    "Attention",
    "CompiledKernel",
    "CompiledStep",
    "MeasuredStep",
    "decode_program",
    "decode_shape",
    # The search, and the set file that it ends in.
    "Factor",
    "Finding",
    "SearchConfig",
    "Trial",
    "search",
    "set_file",
]
