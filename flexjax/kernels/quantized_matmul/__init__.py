"""Quantised matmul: rows times a weight in few bits, whose sums are float32."""

from flexjax.kernels.quantized_matmul.api import quantized_matmul as quantized_matmul
