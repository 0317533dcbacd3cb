"""An HTTP server that answers as servers of any make do, well or badly, by the name of a scenario.

The model that a request names is the scenario; what precedes /v1/models in the path is one too. One thread serves all
connections, plain and over TLS. Each answer is a list of steps: bytes to send, seconds to wait, or CUT.
"""

import asyncio
import dataclasses
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

CUT = None  # The connection is reset in the middle of the answer.

Step = bytes | float | None


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer; `framing` says how the client learns where it ends."""

    steps: Sequence[Step]
    framing: Literal["chunked", "close", "length", "http10", "raw", "closes after"] = "chunked"
    status: str = "200 OK"
    content_type: str = "text/event-stream; charset=utf-8"


Scenario = Callable[[dict, int], Reply]  # From the request's body and how many of the scenario came before.


@dataclasses.dataclass(frozen=True)
class Seen:
    path: str
    body: dict
    headers: dict[str, str]
    connection: int


class OddServer:
    def __init__(self, completions: dict[str, Scenario], models: dict[str, Reply], tls: ssl.SSLContext | None = None):
        self._completions, self._models, self._tls = completions, models, tls
        self.seen: list[Seen] = []
        self.connections = 0  # Opened so far.
        self._counts: dict[str, int] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server = self._do(self._listen(self._tls))
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close_idle(self) -> None:
        """Closes every connection, as a server does with those that were idle for too long."""
        self._do(self._close_connections())

    def of(self, scenario: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.body.get("model") == scenario]

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self, tls: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls, backlog=256)

    async def _close_connections(self) -> None:
        for writer in list(self._writers):
            writer.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # The client went, or the test is over.
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        """One request; whether the connection stays open."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = lines[0].split(" ")[1]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        self.seen.append(Seen(path, body, headers, number))
        if path.endswith("/v1/completions"):
            name = body["model"]
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            reply = self._completions[name](body, count)
        else:
            reply = self._models[path.removesuffix("/v1/models").strip("/")]
        return await _send(reply, writer)


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    if reply.framing != "raw":
        writer.write(_head(reply))
    for step in reply.steps:
        if step is CUT:
            await writer.drain()
            writer.transport.abort()
            return False
        if isinstance(step, float):
            await writer.drain()
            await asyncio.sleep(step)
        elif step:
            chunked = reply.framing in ("chunked", "closes after")
            writer.write(b"%x\r\n%s\r\n" % (len(step), step) if chunked else step)
    if reply.framing in ("chunked", "closes after"):
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return reply.framing in ("chunked", "length")


def _head(reply: Reply) -> bytes:
    lines = [
        f"HTTP/{'1.0' if reply.framing == 'http10' else '1.1'} {reply.status}",
        f"Content-Type: {reply.content_type}",
    ]
    if reply.framing in ("chunked", "closes after"):
        lines.append("Transfer-Encoding: chunked")
    elif reply.framing == "close":
        lines.append("Connection: close")
    elif reply.framing == "length":
        lines.append(f"Content-Length: {sum(len(step) for step in reply.steps if isinstance(step, bytes))}")
    return "\r\n".join([*lines, "Server: odd/1", "", ""]).encode()


def data(value: object) -> bytes:
    """A chunk as an event, its text as it is."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def token(text: str | None = "a", **fields) -> bytes:
    return data({"choices": [{"index": 0, "text": text, **fields}]})


def usage(count: int | None) -> bytes:
    return data({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": count}})


DONE = b"data: [DONE]\n\n"


def tls_context(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A context with a new self-signed certificate for 127.0.0.1, and that certificate's file."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
