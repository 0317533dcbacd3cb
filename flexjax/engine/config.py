"""What an engine is asked to be."""

import dataclasses

from flexjax.hardware.mesh import MeshConfig
from flexjax.quantize import FORMATS
from flexjax.refusal import Refusal

CACHE_DTYPES = (None, "bfloat16", "float32", "float16", "int8", "float8_e4m3fn", "int4")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes and limits of one engine; all counts are in the unit of their comment. With `mesh.data` > 1 they
    are those of each replica.

    Raises Refusal at construction for a value outside its range.
    """

    dtype: str = "bfloat16"  # Of weights and activations: bfloat16 | float32 | float16.
    weight_dtype: str | None = None  # int8 | int4: projections rounded to nearest when loaded; None is `dtype`.
    activation_dtype: str | None = None  # int8: rows are rounded for the products with quantised projections.
    # None is `dtype`. int8 and float8_e4m3fn hold multiples of one scale, found at the start; int4 has one a vector.
    cache_dtype: str | None = None
    max_model_len: int | None = None  # Tokens of prompt and output together; None is the model's own limit.
    max_num_seqs: int = 16  # Sequences in one step.
    max_waiting: int | None = 65_536  # Sequences open beyond max_num_seqs before `submit` refuses; None is no bound.
    max_num_batched_tokens: int = 256  # Rows in one step; longer prompts are prefilled in chunks.
    page_size: int = 16  # Tokens a page.
    num_pages: int | None = None  # None: enough for every sequence at full length, within cache_gib.
    cache_gib: float = 4.0  # Bound on the cache of each device when num_pages is None.
    decode_steps: int = 4  # Decode steps in one dispatch while nobody can be admitted.
    pipeline_depth: int = 2  # Dispatches in flight: 2 lets the host work while the device does.
    mesh: MeshConfig | None = None  # None is one device; else tensor, expert and data over all of them.

    def __post_init__(self):
        rules = [
            ("dtype", self.dtype in ("bfloat16", "float32", "float16"), "bfloat16, float32 or float16"),
            ("weight_dtype", self.weight_dtype in (None, *FORMATS), f"None or {' or '.join(FORMATS)}"),
            (
                "activation_dtype",
                self.activation_dtype is None or (self.activation_dtype == "int8" and self.weight_dtype is not None),
                "None, or int8 beside a weight_dtype",
            ),
            (
                "cache_dtype",
                self.cache_dtype in CACHE_DTYPES,
                f"{', '.join(map(str, CACHE_DTYPES[:-1]))} or {CACHE_DTYPES[-1]}",
            ),
            ("max_model_len", self.max_model_len is None or self.max_model_len >= 2, "None or at least 2 tokens"),
            ("max_num_seqs", self.max_num_seqs >= 1, "at least 1"),
            ("max_waiting", self.max_waiting is None or self.max_waiting >= 0, "None or at least 0"),
            (
                "max_num_batched_tokens",
                self.max_num_batched_tokens > self.max_num_seqs,
                f"more than max_num_seqs={self.max_num_seqs}, so that a step of decodes leaves room for a prompt",
            ),
            ("page_size", self.page_size >= 1, "at least 1 token"),
            ("num_pages", self.num_pages is None or self.num_pages >= 2, "None or at least 2 (page 0 is nobody's)"),
            ("cache_gib", self.cache_gib > 0, "positive"),
            ("decode_steps", self.decode_steps >= 1, "at least 1"),
            ("pipeline_depth", self.pipeline_depth >= 1, "at least 1"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise Refusal(f"EngineConfig.{name} must be {rule}; got {getattr(self, name)!r}.")
