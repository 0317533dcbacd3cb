"""How many connections are opened, and what becomes of a request whose connection the server had closed."""

import asyncio
import contextlib

import httpcore
import psutil
import pytest
from odd_scenarios import GOOD, MODELS
from odd_server import CUT, OddServer, Reply

from flexjax.bench.connections import FAILURES, Connections

BODY = b'{"model": "%s"}'


def _stale(body: dict, before: int) -> Reply:
    return Reply(GOOD) if before != 1 else Reply([CUT], "raw")


def _half_a_head(body: dict, before: int) -> Reply:
    return Reply(GOOD) if before != 1 else Reply([b"HTTP/1.1 200", 0.01, CUT], "raw")


COMPLETIONS = {
    "good": lambda body, before: Reply(GOOD),
    "waits": lambda body, before: Reply([0.1, *GOOD]),
    "close": lambda body, before: Reply(GOOD, "close"),
    "http10": lambda body, before: Reply(GOOD, "http10"),
    "stale": _stale,
    "half a head": _half_a_head,
    "always cut": lambda body, before: Reply([CUT], "raw"),
}


@pytest.fixture(scope="module")
def server():
    server = OddServer(COMPLETIONS, MODELS)
    server.start()
    yield server
    server.stop()


def run(server, use):
    """`use(connections)` in a loop of its own; the connections as they are afterwards, and how many were opened."""

    async def all_of_it():
        connections = Connections(server.url)
        try:
            await use(connections)
        finally:
            await connections.close()
        return connections

    before = server.connections
    connections = asyncio.run(all_of_it())
    return connections, server.connections - before


async def ask(connections: Connections, model: str) -> bytes:
    body = BODY % model.encode()
    async with connections.request("POST", "/v1/completions", body) as response:
        return b"".join([piece async for piece in response.aiter_stream()])


def test_one_connection_serves_one_request_after_another(server):
    async def use(connections):
        assert [await ask(connections, "good") for _ in range(5)] == [b"".join(GOOD)] * 5

    connections, opened = run(server, use)
    assert (opened, connections.opened_by_requests, connections.repeated) == (1, 1, 0)


def test_requests_at_once_have_one_each_and_leave_them_to_the_next(server):
    async def use(connections):
        for _ in range(2):
            await asyncio.gather(*(ask(connections, "waits") for _ in range(8)))

    assert run(server, use)[1] == 8


@pytest.mark.parametrize("model", ["close", "http10"])
def test_a_server_that_keeps_none_is_asked_over_new_ones(server, model):
    async def use(connections):
        for _ in range(3):
            assert await ask(connections, model) == b"".join(GOOD)
        await connections.reopen(4)  # Idle ones could block such a server.

    connections, opened = run(server, use)
    assert opened == connections.opened_by_requests == 3


def test_a_body_that_is_not_read_to_its_end_costs_the_connection(server):
    async def use(connections):
        async with connections.request("POST", "/v1/completions", BODY % b"good"):
            pass
        await ask(connections, "good")

    assert run(server, use)[1] == 2


def test_reopened_before_a_run_no_request_holds_a_handshake(server):
    async def use(connections):
        await asyncio.gather(*(ask(connections, "waits") for _ in range(3)))
        server.close_idle()
        await asyncio.sleep(0.05)
        await connections.reopen(2)  # Three were busy at once: three it is.
        connections.opened_by_requests = 0
        await asyncio.gather(*(ask(connections, "waits") for _ in range(3)))

    connections, opened = run(server, use)
    assert (opened, connections.opened_by_requests, connections.repeated) == (6, 0, 0)


def test_a_connection_that_the_server_closed_while_idle_is_not_used(server):
    async def use(connections):
        await ask(connections, "good")
        server.close_idle()
        await asyncio.sleep(0.05)
        await ask(connections, "good")

    connections, opened = run(server, use)
    assert (opened, connections.repeated) == (2, 0)


def test_nor_one_that_was_never_used(server):
    async def use(connections):
        await connections.open(2)
        await asyncio.sleep(0.05)
        server.close_idle()
        await asyncio.sleep(0.05)
        await ask(connections, "good")

    connections, _ = run(server, use)
    assert (connections.opened_by_requests, connections.repeated) == (1, 0)


def test_a_request_is_sent_again_where_a_kept_connection_closed_before_any_answer(server):
    async def use(connections):
        await ask(connections, "stale")
        assert await ask(connections, "stale") == b"".join(GOOD)

    connections, opened = run(server, use)
    assert (opened, connections.repeated, len(server.of("stale"))) == (2, 1, 3)


def test_it_is_not_sent_again_after_a_byte_of_the_answer(server):
    async def use(connections):
        await ask(connections, "half a head")
        with pytest.raises(FAILURES):
            await ask(connections, "half a head")

    connections, _ = run(server, use)
    assert (connections.repeated, len(server.of("half a head"))) == (0, 2)


def test_it_is_not_sent_again_over_a_new_connection(server):
    async def use(connections):
        with pytest.raises(FAILURES):
            await ask(connections, "always cut")
        await ask(connections, "good")
        with pytest.raises(FAILURES):  # A kept one, then one new one.
            await ask(connections, "always cut")

    connections, _ = run(server, use)
    assert (connections.repeated, len(server.of("always cut"))) == (1, 3)


def test_a_request_cancelled_at_any_moment_leaves_no_socket_open(server):
    port = int(server.url.rsplit(":", 1)[1])

    async def cancelled_after(steps: int) -> int:
        connections = Connections(server.url)
        await ask(connections, "good")
        request = asyncio.create_task(ask(connections, "good"))
        for _ in range(steps):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await connections.close()
        found = psutil.Process().net_connections()
        return sum(c.status == psutil.CONN_ESTABLISHED and c.raddr.port == port for c in found if c.raddr)

    assert [asyncio.run(cancelled_after(steps)) for steps in range(30)] == [0] * 30


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/below/v1/"])
def test_the_url_may_end_in_v1(server, end):
    async def use(connections):
        odd = Connections(server.url + end)
        assert await ask(odd, "good") == b"".join(GOOD)
        await odd.close()

    run(server, use)
    assert server.seen[-1].path == ("/below" if "below" in end else "") + "/v1/completions"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://key@host", "no key"),
        ("http://host/?a=1", "no query"),
        ("http://", "http://host:port"),
        ("http://host:port", "cannot be read"),
        ("http://[::1", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused(url, why):
    with pytest.raises(ValueError, match=why):
        Connections(url)


def test_a_file_of_certificates_that_is_none_is_refused(tmp_path):
    (tmp_path / "ca.pem").write_text("hello")
    for file in (tmp_path / "ca.pem", tmp_path / "nowhere.pem"):
        with pytest.raises(ValueError, match="ca_file must be a PEM file"):
            Connections("https://host", ca_file=str(file))


def test_nobody_there_is_a_failure():
    async def use():
        with contextlib.suppress(httpcore.ConnectError):
            await Connections("http://127.0.0.1:1").open(1)
            pytest.fail("something listens on port 1")

    asyncio.run(use())
