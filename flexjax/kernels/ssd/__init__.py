"""SSD, state-space duality: the recurrence of Mamba-2, with one decay a head, computed by matrix products."""

from flexjax.kernels.ssd.api import ssd as ssd
from flexjax.kernels.ssd.api import ssd_dense as ssd_dense
