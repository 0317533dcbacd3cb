"""Compiler flags of the decoding step: each alone, then what helped together, measured or compiled.

Two searches in one file. `cpu` measures XLA's CPU flags on the shipped model, beside the defaults in alternating
rounds. `v5e` asks the TPU's compiler what it expects of the same step on a v5e, with no such chip present: figures of
another kind, to be measured on a chip before they are trusted.

Model     models/weights/pydoc-7m
Hardware  cpu: any, otherwise idle. v5e: any, with the extra 'virtual'
Expect    five minutes on two cores; on CPU that little or nothing pays

    python -m flexjax.launch --config=configs/tune_flags.py
    python -m flexjax.launch --config=configs/tune_flags.py:v5e
"""

from ml_collections import ConfigDict

CPU = (
    ("xla_cpu_prefer_vector_width", (128, 512)),
    ("xla_cpu_max_isa", ("AVX2",)),
    ("xla_cpu_scheduler_type", ("CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED")),
    ("xla_cpu_copy_insertion_use_region_analysis", (True,)),
    ("xla_cpu_experimental_ynn_fusion_type", ("",)),
    ("xla_cpu_use_xnnpack", (False,)),
    ("xla_cpu_multi_thread_eigen", (False,)),
    ("xla_cpu_use_new_xtile_lowering", (True,)),
    ("xla_cpu_opt_preset", ("CPU_OPT_PRESET_FAST_RUNTIME",)),
    ("xla_backend_optimization_level", (2,)),
    ("xla_llvm_disable_expensive_passes", (True,)),
    ("xla_cpu_enable_fast_math", (True,)),  # Changes results: shown, not chosen, while search.exact holds.
)

TPU = (
    ("xla_tpu_scoped_vmem_limit_kib", (32768, 65536, 98304)),
    ("xla_tpu_enable_experimental_fusion_cost_model", (True,)),
    ("xla_tpu_use_bundle_aware_cost_model_for_fusions", (False,)),
    ("xla_tpu_dot_dot_fusion", (True, False)),
    ("xla_tpu_rwb_fusion", (False,)),
    ("xla_tpu_enable_copy_fusion", (True, False)),
    ("xla_tpu_enable_multi_level_nested_loop_fusion", (True, False)),
    ("xla_tpu_order_dot_after_layout", (False,)),
    ("xla_tpu_licm_size_inflation_ratio", (1.0,)),
    ("xla_vf_vmem_max_outstanding_prefetches", (8, 32)),
)


def get_config(which="cpu"):
    config = ConfigDict()
    config.job = "tune_flags"

    # Data: a full batch, every sequence with a context of so many tokens.
    config.context = 128

    # Model
    config.model = "models/weights/pydoc-7m"
    config.engine = dict(dtype="bfloat16", max_num_seqs=16, max_model_len=256)

    # Run
    if which == "cpu":
        config.evaluate = "measured"
        config.factors = CPU
        config.set_name = "cpu/decode"
        config.rounds = 9
        config.dispatches = 10
    elif which == "v5e":
        config.evaluate = "compiled"
        config.chip = "v5e"
        config.topology = "1x1"
        config.factors = TPU
        config.set_name = "v5e/decode"
        config.engine.decode_steps = (
            1  # The static time of a loop that runs as often as it is told would be of one turn.
        )
    else:
        raise ValueError(f"configs/tune_flags.py has the searches cpu and v5e; got {which!r}.")
    config.search = dict(least_gain=0.02, trials=20, exact=True)
    return config
