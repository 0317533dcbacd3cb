"""Asks a started target outside of any measured load: for its greedy answers, and what it gives each token of a text.

RuntimeError where a target cannot answer, or not with what it was asked for.
"""

import dataclasses
import threading
from collections.abc import Sequence

from flexjax.bench.quality import Window
from flexjax.bench.target import Target
from flexjax.bench.workload import Item
from flexjax.engine import CompletionOutput, Request, SamplingParams, TokenEvent

WAIT_S = 300.0  # From one answer to the next.


def answers(target: Target, items: Sequence[Item]) -> tuple[CompletionOutput, ...]:
    """Each item's greedy answer, all asked for at once."""
    listeners = [_submit_greedy(target, item, number) for number, item in enumerate(items)]
    return tuple(listener.wait() for listener in listeners)


def answers_alone(target: Target, items: Sequence[Item]) -> tuple[CompletionOutput, ...]:
    """Each item's greedy answer, one asked for when the last is done: nothing else is in the target's batch."""
    return tuple(_submit_greedy(target, item, number).wait() for number, item in enumerate(items))


def log_probs(target: Target, windows: Sequence[Window]) -> list[list[float]]:
    """The natural log-probability of each token of each window's continuation, by forced decoding.

    All windows are asked for at once, so that the target's own largest batches score them, in the same steps that
    serve. RuntimeError where it gives other tokens than those forced on it, or does not tell their log-probabilities.
    """
    listeners = []
    for number, window in enumerate(windows):
        n = len(window.continuation)
        params = SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, logprobs=0)
        listener = _Listener(target.name)
        request = Request(f"forced{number:05d}", window.context, params, listener=listener, forced=window.continuation)
        target.submit(request)
        listeners.append(listener)
    given = [listener.wait() for listener in listeners]
    wrong = sum(output.token_ids != w.continuation for output, w in zip(given, windows, strict=True))
    if wrong:
        raise RuntimeError(
            f"{target.name} gave other tokens than those forced on it in {wrong} of {len(windows)} windows."
        )
    untold = sum(
        len(output.logprobs or ()) != len(w.continuation)
        or any(token not in told for token, told in zip(w.continuation, output.logprobs or (), strict=True))
        for output, w in zip(given, windows, strict=True)
    )
    if untold:
        raise RuntimeError(
            f"{target.name} did not tell the log-probabilities of its tokens in {untold} of {len(windows)} windows."
        )
    return [
        [told[token] for token, told in zip(output.token_ids, output.logprobs or (), strict=True)] for output in given
    ]


def _submit_greedy(target: Target, item: Item, number: int) -> "_Listener":
    listener = _Listener(target.name)
    params = dataclasses.replace(item.params, temperature=0.0)
    target.submit(Request(f"quality{number:05d}", item.prompt_token_ids, params, listener=listener))
    return listener


class _Listener:
    """Gathers one request's events into its answer."""

    def __init__(self, target_name: str):
        self._target_name = target_name
        self._events: list[TokenEvent] = []
        self._ended = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        self._events.append(event)
        if event.kind == "done":
            self._ended.set()

    def wait(self) -> CompletionOutput:
        if not self._ended.wait(WAIT_S):
            raise RuntimeError(f"{self._target_name} gave no answer within {WAIT_S:g} s.")
        end = self._events[-1]
        if end.finish_reason in ("error", "cancelled"):
            raise RuntimeError(f"{self._target_name} could not answer: {end.error or end.finish_reason}")
        return CompletionOutput(
            index=0,
            text="".join(event.text for event in self._events),
            token_ids=tuple(token for event in self._events for token in event.token_ids),
            finish_reason=end.finish_reason,
            logprobs=tuple(told for event in self._events for told in event.logprobs),
        )
