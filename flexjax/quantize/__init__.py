"""Weights and cache in fewer bits, rounded to nearest."""

from flexjax.quantize.cache import MOST_CLIPPED as MOST_CLIPPED
from flexjax.quantize.cache import cache_dtypes as cache_dtypes
from flexjax.quantize.cache import cache_scales as cache_scales
from flexjax.quantize.dtypes import weight_dtypes as weight_dtypes
from flexjax.quantize.packed import Norm as Norm
from flexjax.quantize.packed import PackedTable as PackedTable
from flexjax.quantize.packed import PackedWeight as PackedWeight
from flexjax.quantize.table import QuantizedTable as QuantizedTable
from flexjax.quantize.table import table_operand as table_operand
from flexjax.quantize.weights import FORMATS as FORMATS
from flexjax.quantize.weights import QuantizedWeight as QuantizedWeight
from flexjax.quantize.weights import Weight as Weight
from flexjax.quantize.weights import quantize_weights as quantize_weights
from flexjax.quantize.weights import rounded as rounded
