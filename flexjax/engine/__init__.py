"""Prompts in, tokens out: continuous batching over a paged cache."""

from flexjax.engine.config import EngineConfig
from flexjax.engine.engine import Engine
from flexjax.engine.llm import LLM
from flexjax.engine.replicas import Replicas, load_engine
from flexjax.engine.request import CompletionOutput, QueueFull, Request, RequestOutput, SamplingParams, TokenEvent
from flexjax.engine.stats import EngineStats

__all__ = [
    "LLM",
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "QueueFull",
    "Replicas",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "TokenEvent",
    "load_engine",
]
