import pytest

from flexjax.hardware import hlo

TEXT = """
HloModule jit_f, is_scheduled=true

%fused (p0: bf16[32,8], p1: s32[]) -> bf16[1,8] {
  %p0 = bf16[32,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = bf16[1,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

ENTRY %main (w: bf16[32,8], i: s32[]) -> (bf16[1,8], s32[]) {
  %w = bf16[32,8]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %i = s32[]{:T(128)} parameter(1)
  %fusion.1 = bf16[1,8]{1,0:T(8,128)(2,1)S(1)} fusion(%w, /*index=1*/%i), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/while/body/eval_jaxpr/dynamic_slice" stack_frame_id=3}, backend_config={"estimated_cycles":"2231"}
  ROOT %tuple = (bf16[1,8]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%fusion.1, %i)
}
"""  # noqa: E501


def test_computations_and_instructions_are_found_by_name():
    module = hlo.parse(TEXT)
    assert module.entry == "main"
    assert list(module.computations["main"]) == ["w", "i", "fusion.1", "tuple"]
    fusion = module.computations["main"]["fusion.1"]
    assert [i.name for i in module.sources("main", fusion)] == ["w", "i"]
    assert fusion.called("calls") == "fused"
    assert fusion.setting("estimated_cycles") == 2231
    assert fusion.setting("bytes_accessed") is None
    assert fusion.label == "jit(f)/dynamic_slice"
    assert module.root("main").name == "tuple"
    assert module.parameter("fused", 1).name == "p1"


def test_buffers_tell_size_and_memory():
    module = hlo.parse(TEXT)
    (weight,) = module.computations["main"]["w"].buffers
    assert (weight.dims, weight.nbytes, weight.hbm_bytes) == ((32, 8), 512, 512)
    first, second = module.root("main").buffers
    assert (first.nbytes, first.hbm_bytes) == (16, 0)  # In on-chip memory.
    assert (second.dims, second.nbytes) == ((), 4)


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("pred", 10), ("s4", 5), ("u8", 10), ("f8e4m3fn", 10), ("bf16", 20), ("f64", 80), ("c64", 80)]
)
def test_bytes_of_a_dtype(dtype, nbytes):
    assert hlo.Buffer(dtype, (10,), 0).nbytes == nbytes


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=mesh['data'=1,'tensor'=8] {'tensor'}", 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_how_many_share_in_a_collective(groups, size):
    assert hlo.Instruction("all-reduce.1", "all-reduce", (), (), f", {groups}, to_apply=%add", False).group == size


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")
