"""Ragged paged attention: queries of many sequences over a paged key/value cache."""

from flexjax.kernels.ragged_paged_attention.api import ragged_paged_attention as ragged_paged_attention
