from pathlib import Path

import pytest

from flexjax import kernels
from flexjax.kernels.matmul import cpu


def test_a_body_is_told_in_words():
    assert kernels.in_words("matmul", "xla") == "XLA" and kernels.in_words("ssd", "pallas_tpu") == "Pallas"
    assert kernels.in_words("rotary", "cpu") == "C++" and kernels.in_words("rotary", "another") == "another"


@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_a_product_tells_the_instructions_of_this_processor():
    assert cpu.instruction_set() in cpu.INSTRUCTION_SETS
    flags = Path("/proc/cpuinfo").read_text().split() if cpu.instruction_set() != "baseline" else []
    words = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx": "AMX"}
    if cpu.instruction_set() in ("avx2", "avx512_bf16"):
        assert cpu.instruction_set() in flags
    assert kernels.in_words("matmul", "cpu") == f"C++, {words.get(cpu.instruction_set(), 'baseline')}"
