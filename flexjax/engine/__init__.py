"""Prompts in, tokens out: continuous batching over a paged cache."""

from flexjax.engine.config import EngineConfig as EngineConfig
from flexjax.engine.engine import Engine as Engine
from flexjax.engine.limits import most_pages as most_pages
from flexjax.engine.limits import pages_of as pages_of
from flexjax.engine.llm import LLM as LLM
from flexjax.engine.processes.replicas import Replicas as Replicas
from flexjax.engine.processes.replicas import load_engine as load_engine
from flexjax.engine.protocol import ServesModel as ServesModel
from flexjax.engine.protocol import TakesRequests as TakesRequests
from flexjax.engine.rehearsal import seconds_a_step as seconds_a_step
from flexjax.engine.request import CompletionOutput as CompletionOutput
from flexjax.engine.request import FinishReason as FinishReason
from flexjax.engine.request import QueueFull as QueueFull
from flexjax.engine.request import Request as Request
from flexjax.engine.request import RequestOutput as RequestOutput
from flexjax.engine.request import SamplingParams as SamplingParams
from flexjax.engine.request import TokenEvent as TokenEvent
from flexjax.engine.stats import EngineStats as EngineStats
from flexjax.engine.text import TextStream as TextStream
from flexjax.engine.tokenizer import load_vocabulary as load_vocabulary
