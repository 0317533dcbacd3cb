"""Which compiler flags and kernel block sizes make a step faster, found by trying them."""

from flexjax.tune.compiled import CompiledStep
from flexjax.tune.evaluate import Candidate, Cost, Evaluator, Refused, Setting
from flexjax.tune.kernel import CompiledKernel, MeasuredKernel, tuning_of
from flexjax.tune.measured import MeasuredStep
from flexjax.tune.search import AGAIN, Factor, Finding, SearchConfig, Trial, search
from flexjax.tune.set_file import set_file
from flexjax.tune.step import decode_program, decode_shape

__all__ = [
    # What is tried, and what it costs.
    "Candidate",
    "Cost",
    "Evaluator",
    "Refused",
    "Setting",
    # Of a step or a kernel, two ways to know it.
    "CompiledKernel",
    "CompiledStep",
    "MeasuredKernel",
    "MeasuredStep",
    "decode_program",
    "decode_shape",
    "tuning_of",
    # The search, and the set file that it ends in.
    "AGAIN",
    "Factor",
    "Finding",
    "SearchConfig",
    "Trial",
    "search",
    "set_file",
]
