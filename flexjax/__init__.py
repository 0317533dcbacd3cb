"""Language models in JAX: served, trained and measured.

>>> from flexjax import LLM, SamplingParams
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexjax.engine import LLM, EngineConfig, RequestOutput, SamplingParams

from flexjax.hardware import platforms
from flexjax.refusal import Refusal, Unsupported

__all__ = ["LLM", "EngineConfig", "RequestOutput", "SamplingParams", "Refusal", "Unsupported"]


def __getattr__(name: str) -> Any:
    # On first use, not on import: the launcher must set XLA flags before anything imports JAX.
    if name in __all__:
        platforms.cpu_unless_accelerated()
        return getattr(importlib.import_module("flexjax.engine"), name)
    raise AttributeError(f"module 'flexjax' has no attribute {name!r}")
