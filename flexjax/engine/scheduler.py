"""Which sequences go into the next step, and with how many rows."""

import dataclasses

from flexjax.engine.pages import PagePools
from flexjax.engine.sequence import Sequence, Status
from flexjax.engine.waiting import WaitingLine


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows `start:start + length` of a sequence; `samples` is the number of outputs they yield."""

    sequence: Sequence
    start: int
    length: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One dispatch. Decoding chunks (one row each) come first, then prefill chunks.

    `num_steps` > 1 only without prefill: each decoding sequence then makes `samples <= num_steps` tokens.
    """

    chunks: tuple[Chunk, ...]
    num_decodes: int
    num_steps: int

    @property
    def num_rows(self) -> int:
        return sum(c.length for c in self.chunks)


class Scheduler:
    """Continuous batching: first come, first served within a priority, prompts in chunks beside the
    running decodes, preemption by recompute when the pool runs dry.

    A sequence is admitted when a slot is free and the pool holds all tokens known of it; the pages of
    later tokens are taken step by step. When one cannot be had, the last in line is sent back to wait.
    The first in line is never sent back, and any one request fits the pool alone (the engine refuses
    others), so that everyone finishes.
    """

    def __init__(self, pool: PagePools, *, max_num_seqs: int, max_num_batched_tokens: int, decode_steps: int):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.decode_steps = decode_steps
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out wherever it is; its pages and slot go back at once.

        Steps in flight may still write to those pages. That is safe: the device runs steps in order, so
        whoever gets the pages next writes later.
        """
        if sequence.status is Status.RUNNING:
            self._withdraw(sequence)
        else:
            self.waiting.discard(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> Plan | None:
        """The next dispatch, its pages taken and its counts moved on; None when nothing can run."""
        decodes = self._plan_decodes()
        prefills = self._plan_prefills(self.max_num_batched_tokens - len(decodes))
        if not decodes and not prefills:
            return None
        if not prefills:
            decodes = self._lengthen(decodes)
        plan = Plan((*decodes, *prefills), len(decodes), max((c.samples for c in decodes), default=1))
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_scheduled = chunk.start + chunk.length + max(chunk.samples - 1, 0)
            sequence.num_sampled += chunk.samples
            sequence.in_flight += 1
        return plan

    def retire(self, plan: Plan) -> None:
        """After a plan's page tables are copied out: sequences with nothing left to schedule give theirs back."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.status is Status.RUNNING and not sequence.prefilling and sequence.remaining == 0:
                self._withdraw(sequence)
                sequence.status = Status.DRAINING

    def _plan_decodes(self) -> list[Chunk]:
        """One row and one output of every sequence that is past its prompt."""
        chunks: list[Chunk] = []
        for sequence in sorted((s for s in self.running if not s.prefilling), key=lambda s: s.key):
            while sequence.status is Status.RUNNING:
                if self.pool.grow(sequence.pages, sequence.num_scheduled + 1):
                    chunks.append(Chunk(sequence, sequence.num_scheduled, 1, samples=1))
                    break
                # The last in line goes back; in order of `key`, that is never one planned above.
                self._preempt(max(self.running, key=lambda s: s.key))
        return chunks

    def _plan_prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self.running:
            if sequence.prefilling and budget > 0:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].length
        # One that awaits its own last outputs holds back those behind it: first come, first served.
        while self.waiting and budget > 0 and self._free_slots and self.waiting.first.in_flight == 0:
            sequence = self.waiting.first
            if not self.pool.grow(sequence.pages, len(sequence.tokens)):
                break
            self.waiting.pop()
            sequence.target = len(sequence.tokens)
            sequence.slot = self._free_slots.pop()
            sequence.status = Status.RUNNING
            self.running.append(sequence)
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1].length
        return chunks

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        length = min(budget, sequence.target - sequence.num_scheduled)
        ends = sequence.num_scheduled + length == sequence.target
        return Chunk(sequence, sequence.num_scheduled, length, samples=int(ends))

    def _lengthen(self, decodes: list[Chunk]) -> list[Chunk]:
        """Several steps in one dispatch: with somebody waiting, until the first sequence ends; else the last."""
        remaining = [c.sequence.remaining for c in decodes]
        num_steps = min(self.decode_steps, min(remaining) if self.waiting else max(remaining))
        chunks = []
        for chunk in decodes:
            samples = min(num_steps, chunk.sequence.remaining)
            if self.pool.grow(chunk.sequence.pages, chunk.start + samples):
                chunk = dataclasses.replace(chunk, samples=samples)
            chunks.append(chunk)
        return chunks

    def _preempt(self, sequence: Sequence) -> None:
        self._withdraw(sequence)
        sequence.status = Status.WAITING
        sequence.num_scheduled = sequence.target = 0
        sequence.num_preempted += 1
        self.add(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1
