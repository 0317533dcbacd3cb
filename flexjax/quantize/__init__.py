"""Weights and cache in fewer bits: formats, rounding to nearest, and the scales of a cache."""

from flexjax.quantize.cache import MOST_CLIPPED as MOST_CLIPPED
from flexjax.quantize.cache import cache_dtypes as cache_dtypes
from flexjax.quantize.cache import cache_scales as cache_scales
from flexjax.quantize.formats import FORMATS as FORMATS
from flexjax.quantize.formats import Format as Format
from flexjax.quantize.formats import Quantized as Quantized
from flexjax.quantize.formats import format_named as format_named
from flexjax.quantize.formats import rounded as rounded
from flexjax.quantize.formats import rounded_table as rounded_table
