"""The scheduler's promises under random arrivals, cancellations, early ends and pool pressure."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from flexjax.engine.pages import PagePool, PagePools
from flexjax.engine.request import Request, SamplingParams
from flexjax.engine.scheduler import Scheduler
from flexjax.engine.sequence import Sequence, Status
from flexjax.engine.text import TextStream

PAGE_SIZE = 4
MAX_LENGTH = 40
MOST = 3  # Pages that a sequence holds of the layers with a window.


def make_sequence(arrival: int, prompt: int, outputs: int, priority: int = 0) -> Sequence:
    request = Request(f"r{arrival}", tuple(range(prompt)), SamplingParams(max_tokens=outputs), priority=priority)
    return Sequence(request, 0, arrival, 0, outputs, frozenset(), TextStream(None), list(request.prompt_token_ids))


class FakeDevice:
    """Runs plans two dispatches late, as the engine does, and checks what each plan promises."""

    def __init__(self, num_pages: int, max_num_seqs: int, budget: int, decode_steps: int):
        self.pool = PagePools([PagePool(num_pages, PAGE_SIZE), PagePool(num_pages, PAGE_SIZE, most=MOST)])
        self.scheduler = Scheduler(
            self.pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, decode_steps=decode_steps
        )
        self.in_flight: collections.deque = collections.deque()
        self.next_row: dict[Sequence, int] = {}  # The row each sequence must go on with.
        self.ends_at: dict[Sequence, int] = {}  # Outputs after which the model "says" end of text.
        self.admitted: list[Sequence] = []
        self.finished: list[Sequence] = []

    def turn(self) -> bool:
        scheduler = self.scheduler
        plan = scheduler.schedule()
        if plan is not None:
            self.check(plan)
            scheduler.retire(plan)
            self.in_flight.append(plan)
        if self.in_flight and (plan is None or len(self.in_flight) == 2):
            self.receive(self.in_flight.popleft())
        self.check_pool()
        return plan is not None or bool(self.in_flight)

    def check(self, plan) -> None:
        scheduler = self.scheduler
        assert plan.num_rows <= scheduler.max_num_batched_tokens
        assert 1 <= len(plan.chunks) <= scheduler.max_num_seqs
        assert plan.num_steps == 1 or plan.num_decodes == len(plan.chunks)
        assert len({c.sequence.slot for c in plan.chunks}) == len(plan.chunks)
        for i, chunk in enumerate(plan.chunks):
            sequence = chunk.sequence
            assert sequence.status is Status.RUNNING
            assert (i < plan.num_decodes) == (chunk.start >= sequence.target)
            if chunk.start == 0:
                self.next_row[sequence] = 0
                if sequence not in self.admitted:
                    self.admitted.append(sequence)
            assert chunk.start == self.next_row[sequence]
            self.next_row[sequence] = sequence.num_scheduled
            every, windowed = sequence.pages
            assert len(every) * PAGE_SIZE >= sequence.num_scheduled
            assert len(windowed) == min(len(every), MOST)
            assert sequence.num_sampled <= sequence.limit
            if not sequence.prefilling:
                assert sequence.num_scheduled == sequence.num_prompt + sequence.num_sampled - 1

    def check_pool(self) -> None:
        scheduler = self.scheduler
        for table, pool in enumerate(self.pool.pools):
            held = [page for s in scheduler.running for page in s.pages[table]]
            assert len(set(held)) == len(held) == pool.num_used
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert all(not s.pages and s.slot == -1 for s in (*scheduler.waiting, *self.finished))
        assert [s.key for s in scheduler.waiting] == sorted(s.key for s in scheduler.waiting)

    def receive(self, plan) -> None:
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.in_flight -= 1
            for _ in range(chunk.samples):
                if sequence.status is Status.FINISHED:
                    break
                sequence.tokens.append(7)
                outputs = len(sequence.tokens) - sequence.num_prompt
                if outputs >= min(sequence.limit, self.ends_at.get(sequence, MAX_LENGTH)):
                    self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self.finished.append(sequence)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 6),  # Turns since the one before.
        st.integers(1, 24),  # Prompt.
        st.integers(1, 16),  # Outputs at most.
        st.integers(0, 1),  # Priority.
        st.one_of(st.none(), st.integers(1, 16)),  # The model ends it.
        st.one_of(st.none(), st.integers(0, 12)),  # Cancelled so many turns after arrival.
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(ARRIVALS, st.integers(11, 30), st.integers(1, 5), st.integers(6, 32), st.integers(1, 4))
def test_everyone_ends_and_no_page_leaks(arrivals, num_pages, max_num_seqs, budget, decode_steps):
    device = FakeDevice(num_pages, max_num_seqs, budget, decode_steps)
    clock, due, cancels, everyone = 0, {}, {}, []
    for i, (gap, prompt, outputs, priority, ends_at, cancelled) in enumerate(arrivals):
        clock += gap
        sequence = make_sequence(i, prompt, outputs, priority)
        everyone.append(sequence)
        due.setdefault(clock, []).append(sequence)
        if ends_at is not None:
            device.ends_at[sequence] = ends_at
        if cancelled is not None:
            cancels.setdefault(clock + cancelled, []).append(sequence)
    # Alone, a request takes a chunk a turn for its prompt and a turn an output; two more turns drain the
    # pipeline. Preemption repeats work, at worst once a page that somebody before it in line takes.
    bound = clock + 16 * sum(24 + 16 + 4 for _ in everyone)
    for turn in range(bound):
        for sequence in due.get(turn, ()):
            device.scheduler.add(sequence)
        for sequence in cancels.get(turn, ()):
            if sequence.status is not Status.FINISHED:
                device.finish(sequence)
        busy = device.turn()
        if not busy and turn > max((*due, *cancels)):
            break
    assert all(s.status is Status.FINISHED for s in everyone), "somebody was starved"
    assert device.pool.num_used == 0
    assert not device.scheduler.running and not device.scheduler.waiting
    for sequence in everyone:
        outputs = len(sequence.tokens) - sequence.num_prompt
        assert outputs <= min(sequence.limit, device.ends_at.get(sequence, MAX_LENGTH))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 8)), min_size=2, max_size=10))
def test_first_come_first_served(sizes):
    device = FakeDevice(num_pages=16, max_num_seqs=3, budget=16, decode_steps=2)
    sequences = [make_sequence(i, prompt, outputs) for i, (prompt, outputs) in enumerate(sizes)]
    for sequence in sequences:
        device.scheduler.add(sequence)
    while device.turn():
        pass
    assert device.admitted == sequences


def test_priority_goes_before_arrival():
    device = FakeDevice(num_pages=16, max_num_seqs=1, budget=32, decode_steps=1)
    late, urgent = make_sequence(0, 4, 2, priority=1), make_sequence(1, 4, 2, priority=0)
    device.scheduler.add(late)
    device.scheduler.add(urgent)
    while device.turn():
        pass
    assert device.admitted == [urgent, late]


def test_long_prompts_go_in_chunks_beside_decodes():
    device = FakeDevice(num_pages=40, max_num_seqs=2, budget=8, decode_steps=4)
    short, long = make_sequence(0, 3, 12), make_sequence(1, 20, 1)
    device.scheduler.add(short)
    device.turn()
    device.scheduler.add(long)
    lengths = []
    while long.num_scheduled < 20:
        plan = device.scheduler.schedule()
        device.check(plan)
        device.scheduler.retire(plan)
        device.in_flight.append(plan)
        device.receive(device.in_flight.popleft())
        lengths.append([c.length for c in plan.chunks])
    assert lengths == [[1, 7], [1, 7], [1, 6]]


def test_several_steps_only_while_nobody_can_be_admitted():
    device = FakeDevice(num_pages=40, max_num_seqs=1, budget=8, decode_steps=4)
    first, second = make_sequence(0, 3, 7), make_sequence(1, 3, 2)
    device.scheduler.add(first)
    steps = [device.scheduler.schedule().num_steps]
    steps.append(device.scheduler.schedule().num_steps)
    device.scheduler.add(second)  # Waits for the slot: two more outputs of the first, and no idle step.
    steps.append(device.scheduler.schedule().num_steps)
    assert steps == [1, 4, 2]


def test_pressure_sends_back_the_last_in_line_and_it_comes_back():
    device = FakeDevice(num_pages=6, max_num_seqs=2, budget=16, decode_steps=1)  # Five pages of four tokens.
    first, second = make_sequence(0, 8, 8), make_sequence(1, 8, 8)
    device.scheduler.add(first)
    device.scheduler.add(second)
    while device.turn():
        pass
    assert first.num_preempted == 0 and second.num_preempted >= 1
    assert [len(s.tokens) for s in (first, second)] == [16, 16]
