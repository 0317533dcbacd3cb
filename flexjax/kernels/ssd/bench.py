"""What is timed of the SSD: every body on the shapes of serving."""

import functools
from collections.abc import Iterator

from flexjax.kernels import recurrent
from flexjax.kernels.case import Case, each
from flexjax.kernels.ssd.api import ANYWHERE, OP, ORDER, ssd
from flexjax.kernels.ssd.arg_specs import SERVING_SPECS

case = functools.partial(recurrent.case, OP, ssd)


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)
