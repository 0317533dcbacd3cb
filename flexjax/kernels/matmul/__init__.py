"""Quantised matmul: rows times a weight in few bits, whose sums are float32."""

from flexjax.kernels.matmul.api import matmul as matmul
from flexjax.kernels.matmul.api import packed_matmul as packed_matmul
from flexjax.kernels.matmul.api import packs as packs
from flexjax.kernels.matmul.arg_specs import ArgSpec as ArgSpec
from flexjax.kernels.matmul.cpu import read_memory as read_memory
from flexjax.kernels.matmul.packed import Packed as Packed
from flexjax.kernels.matmul.packed import pack as pack
from flexjax.kernels.matmul.packed import pack_gated as pack_gated
