"""MLPerf's LoadGen puts the load on a target, in this process, and gives its own verdict.

LoadGen decides what is issued when; we forward its queries, tell it of first tokens and of ends,
and read its log. What it is known to get wrong (it calls runs valid whose callbacks never came) is
checked in `validity`. It runs one test at a time a process and is set field by field: its
`FromConfig` reads only the first file of a process.
"""

import array
import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlperf_loadgen
import numpy as np

from flexjax.bench.events import Recorder, RequestLog
from flexjax.bench.result import LoadedAnswer, RequestTimeline
from flexjax.bench.scenario import Scenario
from flexjax.bench.workload import Item
from flexjax.engine import Request

Progress = Callable[[int, int], None]  # Requests done, requests expected.

DETAIL_LOG = "mlperf_log_detail.txt"
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class LoadRun:
    """What happened under one load; `start` by `time.perf_counter()`, the timelines from it."""

    start: float
    timelines: tuple[RequestTimeline, ...]
    faults: tuple[str, ...]  # Promises that the target broke, and why the run ended early if it did.
    loadgen: Mapping[str, Any]  # Keys and values of LoadGen's detail log; empty where it had no part.
    answers: tuple[LoadedAnswer, ...]  # To the completed requests whose tokens were not forced.


def run_loadgen(
    scenario: Scenario,
    items: Sequence[Item],
    submit: Callable[[Request], None],
    log_directory: Path,
    *,
    progress: Progress = lambda done, total: None,
    stall_s: float = 60.0,
    trace: bool = False,
) -> LoadRun:
    """Runs one scenario to its end and returns every request's life.

    Without any event for `stall_s` seconds while requests are open, the run is given up: what is open
    is completed towards LoadGen, and the run carries a fault. `trace` has LoadGen write its own
    trace of every query beside its logs.
    """
    log_directory.mkdir(parents=True, exist_ok=True)
    bridge = _Bridge(items, submit)
    failure: list[BaseException] = []

    def test() -> None:
        sut = mlperf_loadgen.ConstructSUT(bridge.issue, lambda: None)
        qsl = mlperf_loadgen.ConstructQSL(len(items), len(items), lambda _: None, lambda _: None)
        try:
            mlperf_loadgen.StartTestWithLogSettings(sut, qsl, _settings(scenario), _log_settings(log_directory, trace))
        except Exception as error:  # Kept for the caller's thread, which raises it.
            failure.append(error)
        finally:
            mlperf_loadgen.DestroyQSL(qsl)
            mlperf_loadgen.DestroySUT(sut)

    # LoadGen blocks in C++, where Ctrl-C is not heard: it gets a thread, and this one stays awake.
    thread = threading.Thread(target=test, name="loadgen", daemon=True)
    thread.start()
    faults: list[str] = []
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            progress(bridge.recorder.done, max(scenario.queries, len(bridge.recorder.logs)))
            if bridge.open_requests and time.perf_counter() - bridge.last_event > stall_s and not faults:
                faults.append(f"no event for {stall_s:g} s with {bridge.open_requests} requests open; run given up")
                bridge.drain()
    except BaseException:  # An interrupt: LoadGen must see its queries end before its thread can.
        bridge.drain()
        thread.join()
        raise
    if failure:
        raise failure[0]
    arrivals = arrival_times(scenario, [log.issued for log in bridge.recorder.logs])
    start = min(arrivals, default=0.0)
    by_id = {log.id: arrival for log, arrival in zip(bridge.recorder.logs, arrivals, strict=True)}
    return LoadRun(
        start=start,
        timelines=bridge.recorder.timelines(start, by_id),
        faults=(*faults, *bridge.recorder.faults, *bridge.faults),
        loadgen=read_detail_log(log_directory / DETAIL_LOG),
        answers=bridge.recorder.answers(),
    )


class _Bridge:
    """Between LoadGen's C++ threads and the target's: forwards queries one way, progress the other."""

    def __init__(self, items: Sequence[Item], submit: Callable[[Request], None]):
        self.recorder = Recorder(self._first_token, self._done)
        self.faults: list[str] = []
        self.last_event = time.perf_counter()
        self._items = items
        self._submit = submit
        self._lock = threading.Lock()
        self._query_ids: dict[str, int] = {}  # Of requests not yet completed towards LoadGen.
        self._draining = False

    @property
    def open_requests(self) -> int:
        return len(self._query_ids)

    def issue(self, samples: Sequence[mlperf_loadgen.QuerySample]) -> None:
        """LoadGen's callback. No exception may leave it: it would end the process inside C++."""
        now = time.perf_counter()
        self.last_event = now
        for sample in samples:
            request, log = self.recorder.open(sample.index, self._items[sample.index], now)
            self._query_ids[log.id] = sample.id
            if self._draining:
                self._complete(log)
                continue
            try:
                self._submit(request)
            except Exception as error:
                self.faults.append(f"request {log.id} was refused: {error}")
                self._complete(log)

    def drain(self) -> None:
        """Completes every open query, and from now on every new one at once, so that LoadGen ends."""
        self._draining = True
        for log in list(self.recorder.logs):
            self._complete(log)

    def _first_token(self, log: RequestLog) -> None:
        self.last_event = time.perf_counter()
        query_id = self._query_ids.get(log.id)
        if query_id is not None:
            _tell_first_token(query_id, log.token_ids)

    def _done(self, log: RequestLog) -> None:
        self.last_event = time.perf_counter()
        self._complete(log)

    def _complete(self, log: RequestLog) -> None:
        with self._lock:
            query_id = self._query_ids.pop(log.id, None)
        if query_id is None:
            return
        if not log.token_ids:  # Failed before any token. LoadGen crashes over a query that had no first one.
            _tell_first_token(query_id, [])
        with _buffer(log.token_ids) as (address, nbytes):
            response = mlperf_loadgen.QuerySampleResponse(query_id, address, nbytes, len(log.token_ids))
            mlperf_loadgen.QuerySamplesComplete([response])


def _tell_first_token(query_id: int, token_ids: Sequence[int]) -> None:
    with _buffer(token_ids) as (address, nbytes):
        mlperf_loadgen.FirstTokenComplete([mlperf_loadgen.QuerySampleResponse(query_id, address, nbytes)])


@contextlib.contextmanager
def _buffer(token_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Address and bytes of an array that lives as long as the context: LoadGen is given the bare address."""
    data = array.array("i", token_ids)
    address, length = data.buffer_info()
    yield address, length * data.itemsize
    del data


def arrival_times(scenario: Scenario, issued: Sequence[float]) -> list[float]:
    """When each request was *scheduled* to arrive, from the times at which it was issued.

    Server: LoadGen's schedule is known (`poisson_offsets`), its origin is not. An issue is never
    early, so the earliest origin that any issue allows is taken; it is late by the smallest lag
    of the run, some tens of microseconds. Elsewhere a request is issued when it arrives.
    """
    if not scenario.poisson or not issued:
        return list(issued)
    offsets = poisson_offsets(scenario.rate_per_s, scenario.seed, len(issued))
    origin = min(at - offset for at, offset in zip(issued, offsets, strict=True))
    return [float(origin + offset) for offset in offsets]


def poisson_offsets(rate_per_s: float, seed: int, count: int) -> np.ndarray:
    """Seconds from the first arrival, as LoadGen's Server scenario schedules them.

    Its gaps are libstdc++'s `std::exponential_distribution<double>` over `std::mt19937(seed)`:
    u = (g0 + 2^32 g1) / 2^64 of two draws, gap = -log(1 - u) / rate; the first arrival is at 0.
    """
    draws = np.random.RandomState(seed).randint(0, 2**32, size=2 * count, dtype=np.uint32).astype(np.float64)
    u = (draws[0::2] + 2.0**32 * draws[1::2]) / 2.0**64
    gaps = -np.log1p(-u) / rate_per_s
    return np.concatenate([[0.0], np.cumsum(gaps[:-1])])


def read_detail_log(path: Path) -> dict[str, Any]:
    """Key → value of LoadGen's `:::MLLOG` lines, `error_messages` and `warning_messages` collected."""
    out: dict[str, Any] = {"error_messages": [], "warning_messages": []}
    for line in path.read_text().splitlines():
        if not line.startswith(":::MLLOG "):
            continue
        entry = json.loads(line.removeprefix(":::MLLOG "))
        out[entry["key"]] = entry["value"]
        for kind in ("error", "warning"):
            if entry["metadata"][f"is_{kind}"]:
                out[f"{kind}_messages"].append(str(entry["value"]))
    return out


def _settings(scenario: Scenario) -> mlperf_loadgen.TestSettings:
    settings = mlperf_loadgen.TestSettings()
    name = "Server" if scenario.poisson else scenario.name
    settings.scenario = getattr(mlperf_loadgen.TestScenario, name)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_query_count = scenario.queries
    settings.min_duration_ms = round(1e3 * scenario.min_duration_s)
    settings.use_token_latencies = True
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = scenario.seed
    if scenario.limits:
        settings.ttft_latency = round(1e6 * scenario.limits.ttft_ms)  # ns
        settings.tpot_latency = round(1e6 * scenario.limits.tpot_ms)  # ns
    if scenario.poisson:
        settings.server_target_qps = scenario.rate_per_s
        settings.server_target_latency_percentile = scenario.percentile
    if scenario.name == "SingleStream":
        settings.single_stream_target_latency_percentile = scenario.percentile
    if scenario.name == "Offline":
        # LoadGen issues 1.1 × expected_qps × min_duration samples, but never fewer than min_query_count.
        settings.offline_expected_qps = scenario.queries / max(scenario.min_duration_s, 1e-3) / 1.1
    return settings


def _log_settings(directory: Path, trace: bool) -> mlperf_loadgen.LogSettings:
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = str(directory)
    output.copy_summary_to_stdout = False
    settings = mlperf_loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = trace
    return settings
