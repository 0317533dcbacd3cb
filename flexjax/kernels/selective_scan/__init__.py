"""Selective scan: the recurrence of Mamba-1, a diagonal state-space model whose step depends on its input."""

from flexjax.kernels.selective_scan.api import selective_scan as selective_scan
from flexjax.kernels.selective_scan.api import selective_scan_dense as selective_scan_dense
