"""Connections to one server, kept from request to request: no time to the first token holds a handshake.

httpx's and httpcore's own pools look at every idle connection, and at each once more for every other one, whenever a
request begins or ends: 13 ms a request with 128 idle connections, which would be measured as the server's. Here the
connection that was used last is taken from the end of a list.
"""

import asyncio
import contextlib
import dataclasses
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import httpcore

from flexjax.refusal import Refusal

# What a connection may fail with. httpcore gives its exceptions no common class.
FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)

_QUIET_S = 2.0  # A connection comes back to its place a moment after its request has told its end.

Headers = Sequence[tuple[bytes, bytes]]


class _Counted(httpcore.AsyncNetworkStream):
    """A stream that knows whether anything has been read from it."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, secure: bool):
        self._stream = stream
        self.secure = secure
        self.received = 0  # bytes

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self.received += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@dataclasses.dataclass(frozen=True, eq=False)
class _Connection:
    stream: _Counted
    http: httpcore.AsyncHTTP11Connection


class Connections:
    """All connections to `url`. Used from one event loop; a connection serves one request at a time.

    `opened_by_requests` counts the requests that had to open one, whose time to the first token so holds a handshake;
    `repeated` those sent a second time, because the server had closed a kept connection before any answer to them.
    """

    def __init__(self, url: str, headers: Headers = (), ca_file: str = "", connect_s: float = 60.0):
        try:
            parts = urllib.parse.urlsplit(url)
            self._host, port = (parts.hostname or "").encode("idna"), parts.port
        except ValueError as error:  # A UnicodeError is one too.
            raise Refusal(f"The url {url!r} cannot be read: {error}. Write it as http://host:port.") from error
        if not self._host or parts.query or parts.fragment or parts.username is not None:
            raise Refusal("A url is http://host:port or https://host:port, and a path if need be: no key, no query.")
        secure = parts.scheme == "https"
        self._port = port or (443 if secure else 80)
        self._scheme = parts.scheme.encode()
        self._path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        self._ssl = _ssl_context(ca_file) if secure else None
        self._headers = [(b"Host", parts.netloc.encode("idna")), (b"User-Agent", b"flexjax"), *headers]
        self._connect_s = connect_s
        # Without anyio, httpcore would export a stand-in of another type.
        self._backend = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._kept = False
        self._busy = 0
        self._most_busy = 0
        self.opened_by_requests = 0
        self.repeated = 0

    async def open(self, count: int) -> None:
        """Opens connections until `count` are idle."""
        while len(self._idle) < count:
            self._idle.append(await self._open())

    async def reopen(self, count: int) -> None:
        """Replaces the idle connections that the server has closed, and opens as many as have been busy at once.

        Requests that are about to end are waited for. Does nothing with a server that keeps no connection: one
        without a request could block it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_S):
                while self._busy:
                    await asyncio.sleep(1e-3)
        if not self._kept:
            return
        found, self._idle = self._idle, []
        for connection in found:
            if await _usable(connection):
                self._idle.append(connection)
        await self.open(max(count, self._most_busy))

    @contextlib.asynccontextmanager
    async def request(self, method: str, path: str, content: bytes = b"") -> AsyncIterator[httpcore.Response]:
        """The answer's head, its body not yet read; read to its end, its connection is kept. Raises FAILURES."""
        self._busy += 1
        self._most_busy = max(self._most_busy, self._busy)
        try:
            connection, response = await self._send(method, path, content)
            try:
                yield response
            finally:
                await response.aclose()
                if connection.http.is_idle():
                    self._kept = True
                    self._idle.append(connection)
        finally:
            self._busy -= 1

    async def close(self) -> None:
        self._idle.clear()
        while self._all:  # Also those whose request was cancelled before it could give them back.
            await self._all.pop().http.aclose()

    async def _send(self, method: str, path: str, content: bytes) -> tuple[_Connection, httpcore.Response]:
        url = httpcore.URL(scheme=self._scheme, host=self._host, port=self._port, target=(self._path + path).encode())
        length = [(b"Content-Length", str(len(content)).encode())] if content else []
        request = lambda: httpcore.Request(method, url, headers=[*self._headers, *length], content=content)
        while self._idle:
            connection = self._idle.pop()
            if not await _usable(connection):
                continue
            before = connection.stream.received
            try:
                return connection, await connection.http.handle_async_request(request())
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                if connection.stream.received > before:
                    raise
                self.repeated += 1
                break
        self.opened_by_requests += 1
        connection = await self._open()
        return connection, await connection.http.handle_async_request(request())

    async def _open(self) -> _Connection:
        stream = await self._backend.connect_tcp(self._host.decode(), self._port, timeout=self._connect_s)
        if self._ssl is not None:
            stream = await stream.start_tls(self._ssl, self._host.decode(), timeout=self._connect_s)
        counted = _Counted(stream, secure=self._ssl is not None)
        origin = httpcore.Origin(self._scheme, self._host, self._port)
        connection = _Connection(counted, httpcore.AsyncHTTP11Connection(origin, counted))
        self._all = {known for known in self._all if not known.http.is_closed()} | {connection}
        return connection


async def _usable(connection: _Connection) -> bool:
    """Whether the server has not closed it, as far as can be seen; closes it here where it has."""
    http, stream = connection.http, connection.stream
    # httpcore looks at none that was never used: over TLS the server has sent session tickets there already.
    unused_and_closed = not stream.received and not stream.secure and stream.get_extra_info("is_readable")
    if not (http.is_closed() or http.has_expired() or unused_and_closed):
        return True
    await http.aclose()
    return False


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    context = httpcore.default_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # An ssl.SSLError is one too.
            raise Refusal(
                f"ca_file must be a PEM file of certificates; {ca_file!r} cannot be read: {error}."
            ) from error
    return context
