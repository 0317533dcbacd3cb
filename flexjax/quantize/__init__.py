"""Weights in fewer bits: formats, and rounding to nearest."""

from flexjax.quantize.formats import FORMATS as FORMATS
from flexjax.quantize.formats import Format as Format
from flexjax.quantize.formats import Quantized as Quantized
from flexjax.quantize.formats import format_named as format_named
from flexjax.quantize.formats import rounded as rounded
from flexjax.quantize.formats import rounded_table as rounded_table
