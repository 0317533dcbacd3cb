import jax
import jax.numpy as jnp
import pytest

from flexjax.hardware import program

# A loop of four turns over stacked weights, with a cache updated in place, as libtpu writes it.
LOOP = """
HloModule jit_f, is_scheduled=true

%slice_and_multiply (p0: bf16[4,64,64], p1: s32[], p2: bf16[8,64]) -> f32[8,64] {
  %p0 = bf16[4,64,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %c0 = s32[]{:T(128)} constant(0)
  %slice = bf16[1,64,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %c0, %c0), dynamic_slice_sizes={1,64,64}
  %weight = bf16[64,64]{1,0:T(8,128)(2,1)} bitcast(%slice)
  %p2 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %product = f32[8,64]{1,0:T(8,128)} convolution(%p2, %weight), dim_labels=bf_io->bf
}

%write (q0: bf16[1000,128], q1: s32[2,1], q2: bf16[2,128]) -> bf16[1000,128] {
  %q0 = bf16[1000,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q1 = s32[2,1]{1,0:T(2,128)} parameter(1)
  %q2 = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %scatter = bf16[1000,128]{1,0:T(8,128)(2,1)} scatter(%q0, %q1, %q2), update_window_dims={1}, to_apply=%last
}

%last (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  ROOT %b = bf16[] parameter(1)
}

%body (state: (s32[], bf16[4,64,64], bf16[8,64], bf16[1000,128], s32[2,1], /*index=5*/bf16[2,128])) -> (s32[], bf16[4,64,64], bf16[8,64], bf16[1000,128], s32[2,1], /*index=5*/bf16[2,128]) {
  %state = (s32[]{:T(128)}, bf16[4,64,64]{2,1,0:T(8,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1000,128]{1,0:T(8,128)(2,1)}, s32[2,1]{1,0:T(2,128)S(1)}, /*index=5*/bf16[2,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)S(1)} get-tuple-element(%state), index=0
  %w = bf16[4,64,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %x = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=2
  %cache = bf16[1000,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=3
  %at = s32[2,1]{1,0:T(2,128)S(1)} get-tuple-element(%state), index=4
  %new = bf16[2,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=5
  %fusion.1 = f32[8,64]{1,0:T(8,128)S(1)} fusion(%w, %i, %x), kind=kOutput, calls=%slice_and_multiply, metadata={op_name="jit(f)/while/body/dot_general"}, backend_config={"estimated_cycles":"500"}
  %fusion.2 = bf16[1000,128]{1,0:T(8,128)(2,1)} fusion(%cache, %at, %new), kind=kLoop, calls=%write
  %attend.3 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} custom-call(%x, %fusion.2), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"77","transcendentals":"1","bytes_accessed":"4096"}}}
  %sum.4 = f32[8,64]{1,0:T(8,128)S(1)} all-reduce(%fusion.1), replica_groups=mesh['tensor'=8] {'tensor'}, to_apply=%last
  ROOT %next = (s32[]{:T(128)}, bf16[4,64,64]{2,1,0:T(8,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1000,128]{1,0:T(8,128)(2,1)}, s32[2,1]{1,0:T(2,128)S(1)}, /*index=5*/bf16[2,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %w, %attend.3, %fusion.2, %at, /*index=5*/%new)
}

%until (state.1: (s32[], bf16[4,64,64], bf16[8,64], bf16[1000,128], s32[2,1], /*index=5*/bf16[2,128])) -> pred[] {
  %four = s32[]{:T(128)S(1)} constant(4)
  %state.1 = (s32[]{:T(128)}, bf16[4,64,64]{2,1,0:T(8,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1000,128]{1,0:T(8,128)(2,1)}, s32[2,1]{1,0:T(2,128)S(1)}, /*index=5*/bf16[2,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)S(1)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)S(1)} compare(%i.1, %four), direction=LT
}

ENTRY %main (start: (s32[], bf16[4,64,64], bf16[8,64], bf16[1000,128], s32[2,1], /*index=5*/bf16[2,128])) -> (s32[], bf16[4,64,64], bf16[8,64], bf16[1000,128], s32[2,1], /*index=5*/bf16[2,128]) {
  %start = (s32[]{:T(128)}, bf16[4,64,64]{2,1,0:T(8,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1000,128]{1,0:T(8,128)(2,1)}, s32[2,1]{1,0:T(2,128)S(1)}, /*index=5*/bf16[2,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[4,64,64]{2,1,0:T(8,128)(2,1)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1000,128]{1,0:T(8,128)(2,1)}, s32[2,1]{1,0:T(2,128)S(1)}, /*index=5*/bf16[2,128]{1,0:T(8,128)(2,1)S(1)}) while(%start), condition=%until, body=%body
}
"""  # noqa: E501


def test_a_loop_counts_its_turns_and_each_op_its_traffic():
    read = program.read(LOOP)
    ops = {op.name: op for op in read.ops}
    assert {op.turns for op in read.ops} == {4}
    # Of the stacked weights one slice; what lies in on-chip memory is free.
    assert ops["fusion.1"].hbm_bytes == 64 * 64 * 2
    assert ops["fusion.1"].flops == 2 * 8 * 64 * 64
    assert ops["fusion.1"].cycles == 500
    assert ops["fusion.2"].hbm_bytes == 2 * 128 * 2  # Of the cache, the rows that are written.
    # Of what a kernel declares, the rows and its result are in on-chip memory.
    assert (ops["attend.3"].opcode, ops["attend.3"].hbm_bytes) == ("kernel", 4096 - 2 * 8 * 64 * 2)
    assert ops["attend.3"].flops == 77
    assert (ops["sum.4"].sent_bytes, ops["sum.4"].group, ops["sum.4"].hbm_bytes) == (8 * 64 * 4, 8, 0)
    assert read.hbm_bytes == 4 * sum(op.hbm_bytes for op in read.ops)
    assert read.sent_bytes == 4 * 8 * 64 * 4


def test_a_slice_counts_as_a_slice_through_a_change_of_tiles():
    """As libtpu slices a layer out of stacked int8 weights."""
    text = """
%tiled (p: s8[8,64,64]) -> s8[8,64,64] {
  %p = s8[8,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[8,64,64]{2,1,0:T(8,128)(4,1)} copy(%p)
}

%sliced (q: s8[8,64,64], i: s32[]) -> bf16[1,64,64] {
  %q = s8[8,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %view = s8[8,64,64]{2,1,0:T(8,128)(4,1)} fusion(%q), kind=kLoop, calls=%tiled
  %wide = bf16[8,64,64]{2,1,0} convert(%view)
  %i = s32[] parameter(1)
  ROOT %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%wide, %i, %i, %i), dynamic_slice_sizes={1,64,64}
}

ENTRY %main (w: s8[8,64,64], n: s32[]) -> bf16[1,64,64] {
  %w = s8[8,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %n = s32[]{:S(1)} parameter(1)
  ROOT %fusion = bf16[1,64,64]{2,1,0:S(1)} fusion(%w, %n), kind=kLoop, calls=%sliced
}
"""
    assert program.read(text).hbm_bytes == 64 * 64


def test_a_triton_kernel_counts_what_it_declares():
    text = """
ENTRY %main (pages: s8[1000,128]) -> f32[8,64] {
  %pages = s8[1000,128]{1,0} parameter(0)
  ROOT %triton_kernel_call.7 = f32[8,64]{1,0} custom-call(%pages), custom_call_target="triton_kernel_call_ffi", metadata={op_name="jit(step)/attend/triton_kernel_call"}, backend_config={cost_estimate_json = "{\\22flops\\22: 77, \\22bytes_accessed\\22: 4096}", opaque = "x"}
}
"""  # noqa: E501
    (op,) = program.read(text).ops
    assert (op.opcode, op.label, op.hbm_bytes, op.flops) == ("kernel", "attend", 4096, 77)


def test_a_whole_copy_of_the_cache_is_seen():
    copied = LOOP.replace("fusion(%cache, %at, %new), kind=kLoop, calls=%write", "copy(%cache)")
    ops = {op.name: op for op in program.read(copied).ops}
    assert ops["fusion.2"].hbm_bytes == 2 * 1000 * 128 * 2


@pytest.mark.parametrize(
    "started",
    [
        "(bf16[512,512]{1,0:T(8,128)S(1)}, bf16[512,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)",
        "((bf16[512,512]{1,0:T(8,128)}), bf16[512,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={}",
        "((bf16[512,512]{1,0:T(8,128)}), bf16[512,512]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion-start(%w), calls=%all",
    ],
)
def test_what_is_fetched_ahead_is_read_once(started):
    text = f"""
%all (p: bf16[512,512]) -> bf16[512,512] {{
  ROOT %p = bf16[512,512]{{1,0}} parameter(0)
}}

ENTRY %main (w: bf16[512,512]) -> bf16[512,512] {{
  %w = bf16[512,512]{{1,0:T(8,128)}} parameter(0)
  %start = {started}
  ROOT %done = bf16[512,512]{{1,0:T(8,128)S(1)}} {started.split(") ")[-1].split("-")[0]}-done(%start)
}}
"""
    assert program.read(text).hbm_bytes == 512 * 512 * 2


@pytest.mark.parametrize(("begins", "step", "turns"), [(0, 1, 4), (0, 2, 2), (1, 2, 2), (0, 3, 2)])
def test_a_loop_counts_in_its_own_steps(begins, step, turns):
    """XLA cuts a product whose weight is gathered into windows, and unrolls the loop over them by two."""
    types = LOOP.split("%start = ")[1].split(" parameter(0)")[0]
    text = LOOP.replace(
        f"%start = {types} parameter(0)",
        f"%begins = s32[]{{:T(128)}} constant({begins})\n  %copied = s32[]{{:T(128)}} copy(%begins)\n"
        f"  %start = {types} tuple(%copied, %w, %x, %cache, %at, %new)",
    )
    for name in ("w", "x", "cache", "at", "new"):
        text = text.replace("  %begins =", f"  %{name} = s32[]{{:T(128)}} parameter(0)\n  %begins =")
    added = f"%step = s32[]{{:T(128)}} constant({step})\n  %more = s32[]{{:T(128)}} add(%i, %step)"
    text = text.replace("  ROOT %next", f"  {added}\n  ROOT %next").replace("tuple(%i,", "tuple(%more,")
    assert {op.turns for op in program.read(text).ops if op.opcode == "kernel"} == {turns}


def test_a_loop_of_unknown_length_counts_once():
    unknown = LOOP.replace(
        "%four = s32[]{:T(128)S(1)} constant(4)", "%four = s32[]{:T(128)S(1)} get-tuple-element(%state.1), index=0"
    )
    unknown = unknown.replace("  %state.1 = (", "  %state.1 = (", 1)
    assert {op.turns for op in program.read(unknown).ops} == {1}


def test_a_window_counts_only_what_lies_inside():
    # libtpu writes a product over rows and heads so: a window as wide as the heads, nearly all padding.
    text = """
ENTRY %main (x: bf16[32,512,1], w: bf16[512,4,128]) -> f32[32,4,128] {
  %x = bf16[32,512,1]{1,0,2} parameter(0)
  %w = bf16[4,128,512]{2,1,0} parameter(1)
  ROOT %product = f32[32,4,128]{2,1,0} convolution(%x, %w), window={size=4 pad=3_3}, dim_labels=bf0_0oi->b0f
}
"""
    assert program.read(text).flops == 2 * 32 * 4 * 128 * 512


@pytest.mark.parametrize("length", [1, 5])
def test_products_of_a_real_scan_are_counted(length):
    def f(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.einsum("TD,DE->TE", x, w), None), x, weights)[0]

    x, weights = jnp.zeros((64, 128)), jnp.zeros((length, 128, 128))
    read = program.read(jax.jit(f).lower(x, weights).compile().as_text())
    assert read.flops == length * 2 * 64 * 128 * 128
    assert length * 128 * 128 * 4 <= read.hbm_bytes


def test_the_cheapest_branch_is_taken():
    def f(wanted, x):
        return jax.lax.cond(wanted, lambda x: jnp.einsum("TD,DE->TE", x, x), lambda x: x, x)

    read = program.read(jax.jit(f).lower(jnp.bool_(True), jnp.zeros((128, 128))).compile().as_text())
    assert read.flops == 0
