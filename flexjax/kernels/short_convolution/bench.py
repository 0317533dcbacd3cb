"""What is timed of the short convolution: every body on the shapes of serving."""

import functools
from collections.abc import Iterator

from flexjax.kernels import recurrent
from flexjax.kernels.case import Case, each
from flexjax.kernels.short_convolution.api import ANYWHERE, OP, ORDER, short_convolution
from flexjax.kernels.short_convolution.arg_specs import SERVING_SPECS

case = functools.partial(recurrent.case, OP, short_convolution)


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)
