"""The engine's half on the device: steps compiled before the first request, and what they sample and score."""

from flexjax.engine.device.cache_scales import MOST_CLIPPED as MOST_CLIPPED
from flexjax.engine.device.cache_scales import cache_dtypes as cache_dtypes
from flexjax.engine.device.cache_scales import state_dtypes as state_dtypes
from flexjax.engine.device.sampling import empty_memory as empty_memory
from flexjax.engine.device.step import LAYOUT_BACKENDS as LAYOUT_BACKENDS
from flexjax.engine.device.step import StepProgram as StepProgram
from flexjax.engine.device.step import StepShape as StepShape
from flexjax.engine.device.step import compiler_options as compiler_options
from flexjax.engine.device.step import suited as suited
