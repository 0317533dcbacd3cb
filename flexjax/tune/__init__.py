"""Which compiler flags make a step faster, and block sizes a step or a kernel, found by trying them."""

from flexjax.tune.compiled import CompiledStep as CompiledStep
from flexjax.tune.measured import MeasuredStep as MeasuredStep
from flexjax.tune.search import AGAIN as AGAIN
from flexjax.tune.search import Factor as Factor
from flexjax.tune.search import Finding as Finding
from flexjax.tune.search import SearchConfig as SearchConfig
from flexjax.tune.search import Trial as Trial
from flexjax.tune.search import search as search
from flexjax.tune.set_file import describe as describe
from flexjax.tune.set_file import figure as figure
from flexjax.tune.set_file import set_file as set_file
from flexjax.tune.step import decode_program as decode_program
from flexjax.tune.step import decode_shape as decode_shape
