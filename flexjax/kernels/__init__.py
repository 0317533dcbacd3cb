"""Ops with more than one body. Each folder is one op; its door names the function:
`from flexjax.kernels.ragged_paged_attention import ragged_paged_attention`."""

from flexjax.kernels.case import Case as Case
from flexjax.kernels.case import can_serve as can_serve
from flexjax.kernels.names import in_words as in_words
from flexjax.kernels.registry import Choice as Choice
from flexjax.kernels.registry import bodies_used as bodies_used
from flexjax.kernels.registry import for_threads as for_threads
from flexjax.kernels.registry import forget as forget
from flexjax.kernels.registry import recording as recording
from flexjax.kernels.registry import use_bodies as use_bodies
from flexjax.kernels.tuning import ByChip as ByChip
from flexjax.kernels.tuning import Kernel as Kernel
from flexjax.kernels.tuning import Loop as Loop
