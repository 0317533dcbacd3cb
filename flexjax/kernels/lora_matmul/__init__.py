"""Gathered LoRA matmul: rows of many adapters, each with its own low-rank change of one projection."""

from flexjax.kernels.lora_matmul.api import lora_matmul as lora_matmul
from flexjax.kernels.lora_matmul.rows import AdapterRows as AdapterRows
