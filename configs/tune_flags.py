"""Compiler flags and block sizes: each alone, then what helped together, measured or compiled.

Three kinds of search in one file. `cpu` measures XLA's CPU flags on the shipped model, beside the defaults in
alternating rounds. `v5e`, `v5p` and `v6e` ask the TPU's compiler what it expects of a decoding step, with no such chip
present, and `<chip>/<op>/<shape>` which instructions it schedules for a kernel with other block sizes (what can be
tried stands in the op's tuning.py): figures of another kind, to be measured on a chip before they are trusted.
`tpu/<op>/<shape>` measures them on the TPU that is here.

Model     cpu: models/weights/pydoc-7m. TPUs: llama3-8b by its published dimensions, without weights; kernels: none
Hardware  cpu: any, otherwise idle. TPUs: any, with the extra 'virtual'
Expect    five minutes on two cores; on CPU that little or nothing pays

    python -m flexjax.launch --config=configs/tune_flags.py
    python -m flexjax.launch --config=configs/tune_flags.py:v5e
    python -m flexjax.launch --config=configs/tune_flags.py:v6e/ragged_paged_attention/llama3_8b_of_4
    python -m flexjax.launch --config=configs/tune_flags.py:tpu/ssd/mamba2_2_7b_prefill_1024
"""

from ml_collections import ConfigDict

# What each does, by XLA's own help (XLA_FLAGS=--help) unless a source is named.
CPU = (
    ("xla_cpu_prefer_vector_width", (128, 512), "Width in bits of the vectors that LLVM prefers; 256 by default."),
    ("xla_cpu_max_isa", ("AVX2",), "The newest instructions that are used."),
    (
        "xla_cpu_scheduler_type",
        ("CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"),
        "The order of operations: for little memory, or for many at once.",
    ),
    ("xla_cpu_copy_insertion_use_region_analysis", (True,), "Finds more copies that are not needed."),
    ("xla_cpu_experimental_ynn_fusion_type", ("",), "Takes products and sums from YNNPACK; empty leaves it out."),
    ("xla_cpu_use_xnnpack", (False,), "Takes supported operations from XNNPACK."),
    ("xla_cpu_multi_thread_eigen", (False,), "Splits Eigen's products over threads."),
    ("xla_cpu_use_new_xtile_lowering", (True,), "A newer way to tile loops."),
    ("xla_cpu_opt_preset", ("CPU_OPT_PRESET_FAST_RUNTIME",), "Compile time traded for speed, as XLA sees it."),
    ("xla_backend_optimization_level", (2,), "LLVM's optimisation level; 3 by default."),
    ("xla_llvm_disable_expensive_passes", (True,), "Leaves LLVM's expensive passes out."),
    # Shown, not chosen, while search.exact holds.
    (
        "xla_cpu_enable_fast_math",
        (True,),
        "Reorders sums and divisions as if rounding did not matter: changes results.",
    ),
)

TPU = (
    (
        "xla_tpu_scoped_vmem_limit_kib",
        (32768, 65536, 98304),
        "Vector memory that one operation may take; the rest prefetches for the next (MaxText, xla_flags_library).",
    ),
    ("xla_tpu_enable_copy_fusion", (True, False), "Fuses copies with what stands beside them."),
    ("xla_tpu_dot_dot_fusion", (True, False), "Fuses a product with the next one."),
    ("xla_tpu_rwb_fusion", (False,), "Fuses reductions with the broadcast of their result."),
    ("xla_tpu_enable_multi_level_nested_loop_fusion", (True, False), "Fuses loops inside fused loops."),
    ("xla_tpu_enable_experimental_fusion_cost_model", (True,), "Chooses fusions by a newer cost model."),
    (
        "xla_tpu_use_bundle_aware_cost_model_for_fusions",
        (False,),
        "Counts instruction bundles when fusions are chosen (MaxText, DISABLE_BUNDLE_AWARE_COST_MODEL).",
    ),
    ("xla_tpu_order_dot_after_layout", (False,), "Orders products after their layouts are known."),
    ("xla_tpu_licm_size_inflation_ratio", (1.0,), "How much larger code may grow when it is moved out of loops."),
    ("xla_vf_vmem_max_outstanding_prefetches", (8, 32), "Prefetches into vector memory at once."),
)

TOPOLOGIES = {"v5e": "2x4", "v5p": "2x2x1", "v6e": "2x2"}


def get_config(which="cpu"):
    config = ConfigDict()
    config.job = "tune_flags"
    chip, _, kernel = which.partition("/")
    config.set_name = f"{chip}/latency"
    if which == "cpu":
        # Data: a full batch, each sequence with a context of so many tokens.
        config.context = 128

        # Model
        config.model = "models/weights/pydoc-7m"
        config.engine = dict(dtype="bfloat16", max_num_seqs=16)

        # Run
        config.evaluate = "measured"
        config.factors = CPU
        config.rounds = 9
        config.dispatches = 11
    elif kernel:
        config.kernel = kernel
        config.evaluate = "kernel"
        config.chip = "" if chip == "tpu" else chip
        config.set_name = f"{chip}/{kernel.replace('/', '_')}_blocks"
    elif chip in TOPOLOGIES:
        config.context = 2048
        config.model = "llama3-8b"
        config.engine = dict(dtype="bfloat16", max_num_seqs=32, page_size=128)

        config.evaluate = "compiled"
        config.chip = chip
        config.topology = TOPOLOGIES[chip]
        config.factors = TPU
    else:
        names = ["cpu", *TOPOLOGIES, "<chip>/<op>/<shape>"]
        raise ValueError(f"configs/tune_flags.py has the searches {', '.join(names)}; got {which!r}.")
    config.search = dict(least_gain=0.02, trials=20, exact=not kernel)  # Other blocks round otherwise.
    return config
