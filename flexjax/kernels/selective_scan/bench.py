"""What is timed of the selective scan: every body on the shapes of serving."""

import functools
from collections.abc import Iterator

from flexjax.kernels import recurrent
from flexjax.kernels.case import Case, each
from flexjax.kernels.selective_scan.api import ANYWHERE, OP, ORDER, selective_scan
from flexjax.kernels.selective_scan.arg_specs import SERVING_SPECS

case = functools.partial(recurrent.case, OP, selective_scan)


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)
