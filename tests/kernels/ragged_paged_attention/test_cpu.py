"""The C++ of ragged paged attention under sanitizers; test_base.py checks its values."""

from pathlib import Path

import pytest
import sanitizers

from flexjax.kernels.ragged_paged_attention import cpu
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, ArgSpec

ODD = [
    ArgSpec(N=3, K=3, H=1, page_size=1, sequences=((1, 1), (2, 5))),
    ArgSpec(N=6, K=2, H=7, page_size=3, sequences=((1, 40), (9, 37)), window=11),
    ArgSpec(N=5, K=1, H=33, page_size=16, sequences=((1, 31), (3, 32), (50, 81)), softcap=9.0),
    ArgSpec(N=4, K=1, H=64, page_size=16, sequences=((1, 16), (1, 17), (1, 600), (200, 530)), window=500),
    ArgSpec(N=2, K=2, H=96, page_size=48, sequences=((1, 33), (35, 35), (1, 49))),
]


def sanitized_lines() -> list[str]:
    specs = [(s, s.dtype, s.page_dtype or s.dtype) for s in ARG_SPECS.values()]
    specs += [(s, dtype, page) for s in ODD for dtype in ("float32", "bfloat16") for page in cpu.PAGE_DTYPES]
    found = []
    for s, dtype, page in specs:
        for isa in range(len(cpu.INSTRUCTION_SETS)):
            numbers = [s.N, s.K, s.H, s.page_size, s.window or 0, s.softcap or 0, int(dtype == "float32")]
            numbers += [cpu.PAGE_DTYPES.index(page), isa, len(s.sequences), *(n for pair in s.sequences for n in pair)]
            found.append(" ".join(map(str, numbers)))
    return found


@pytest.mark.slow  # The compiler takes most of a minute.
@pytest.mark.skipif(sanitizers.COMPILER is None, reason="needs a C++ compiler")
def test_nothing_is_read_or_written_out_of_place(tmp_path):
    """On all shapes, odd sizes and unaligned addresses, under the address and undefined-behaviour sanitizers."""
    flags = ["-fno-sanitize=alignment,null,pointer-overflow,object-size,vptr"]
    sanitizers.check(Path(__file__).with_name("sanitized.cc"), flags, sanitized_lines(), "calls", tmp_path)
