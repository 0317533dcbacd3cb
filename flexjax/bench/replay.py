"""Replays a workload at its own recorded times. The measuring code is the same as under LoadGen;
LoadGen itself has no part in it, so there is no verdict of its own."""

import threading
import time
from collections.abc import Callable, Sequence

from flexjax.bench.events import Recorder
from flexjax.bench.loadgen import LoadRun, Progress
from flexjax.bench.workload import Item
from flexjax.engine import Request
from flexjax.refusal import Refusal

_POLL_S = 0.1


def run_replay(
    items: Sequence[Item],
    submit: Callable[[Request], None],
    *,
    progress: Progress = lambda done, total: None,
    stall_s: float = 60.0,
) -> LoadRun:
    """Submits each item at its offset and waits for the last to end.

    Refusal where an item has no offset. Ends early, with a fault, when nothing was done for
    `stall_s` seconds after the last arrival.
    """
    offsets = [item.offset_s for item in items if item.offset_s is not None]
    if len(offsets) < len(items):
        raise Refusal("A replay needs a workload with times: set workload.trace to a trace file.")
    recorder = Recorder()
    faults: list[str] = []
    stop = threading.Event()
    start = time.perf_counter()

    def issue() -> None:
        for index, (item, offset) in enumerate(zip(items, offsets, strict=True)):
            if stop.wait(max(0.0, start + offset - time.perf_counter())):
                return
            request, log = recorder.open(index, item, time.perf_counter())
            try:
                submit(request)
            except Exception as error:  # One refused request does not end the replay.
                log.error, log.done = str(error), time.perf_counter()
                faults.append(f"request {log.id} was refused: {error}")

    thread = threading.Thread(target=issue, name="replay", daemon=True)
    thread.start()
    refused = lambda: len(faults)
    last_change, done = start, 0
    try:
        while (finished := recorder.done + refused()) < len(items):
            time.sleep(_POLL_S)
            now = time.perf_counter()
            if finished != done or thread.is_alive():
                last_change, done = now, finished
            progress(finished, len(items))
            if now - last_change > stall_s:
                faults.append(f"nothing done for {stall_s:g} s with {len(items) - finished} requests open; given up")
                break
    finally:
        stop.set()
        thread.join()
    arrivals = {log.id: start + offset for log, offset in zip(recorder.logs, offsets, strict=False)}
    timelines, answers = recorder.timelines(start, arrivals), recorder.answers()
    return LoadRun(start, timelines, (*faults, *recorder.faults), {}, answers)
