"""Ragged paged attention: queries of many sequences over a paged key/value cache."""

from flexjax.kernels.ragged_paged_attention.api import OP as OP
from flexjax.kernels.ragged_paged_attention.api import ragged_paged_attention as ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ArgSpec as ArgSpec
from flexjax.kernels.ragged_paged_attention.pages import LARGEST as LARGEST
from flexjax.kernels.ragged_paged_attention.pages import Int4Pages as Int4Pages
from flexjax.kernels.ragged_paged_attention.pages import ScaledPages as ScaledPages
from flexjax.kernels.ragged_paged_attention.pages import num_clipped as num_clipped
from flexjax.kernels.ragged_paged_attention.pages import numbers_per_token as numbers_per_token
from flexjax.kernels.ragged_paged_attention.pages import one_pool as one_pool
from flexjax.kernels.ragged_paged_attention.pages import put_back as put_back
from flexjax.kernels.ragged_paged_attention.pages import rescaled as rescaled
