"""Queries, keys and values cut out of one product, and turned by their positions."""

from flexjax.kernels.rotary.api import rotary as rotary
