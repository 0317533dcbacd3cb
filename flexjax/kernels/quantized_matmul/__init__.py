"""Quantised matmul: rows times a weight in few bits, whose sums are float32."""

from flexjax.kernels.quantized_matmul.api import packed_matmul as packed_matmul
from flexjax.kernels.quantized_matmul.api import packs as packs
from flexjax.kernels.quantized_matmul.api import quantized_matmul as quantized_matmul
from flexjax.kernels.quantized_matmul.arg_specs import ArgSpec as ArgSpec
from flexjax.kernels.quantized_matmul.cpu import read_memory as read_memory
from flexjax.kernels.quantized_matmul.packed import Packed as Packed
from flexjax.kernels.quantized_matmul.packed import pack as pack
from flexjax.kernels.quantized_matmul.packed import pack_gated as pack_gated
