"""Letters between the processes of one `jax.distributed` job, by the name of the box that they go to."""

import logging
import secrets
import socket
import sys
import threading
from multiprocessing.connection import Client, Connection, Listener
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flexjax.hardware import distributed

_KEY_BYTES = 32
_HANG_UP_SECONDS = 10
_SILENT_SECONDS = 30  # After which a host that answers nothing counts as lost.
_LOST = "lost"  # The box of the news that a process is lost.


class Post:
    """Every process is connected with process 0 alone, which passes on what is addressed to another.

    What one process sends to a box of another arrives in that order. The end is told to every box: by `close` in
    process 0, or when any process is lost; `lost` then says which: "process 1 of 4 (host-b) is gone".
    """

    def __init__(self):
        """Waits until every process of the job has come here. Devices must have nothing else to do meanwhile."""
        self.index, self.count = jax.process_index(), jax.process_count()
        self._boxes: dict[str, SimpleQueue[Any]] = {}
        self._changing = threading.Lock()  # Held while boxes are made, and at the end.
        self._links, self._hosts = _lead(self.count) if self.index == 0 else _join(self.index)
        self._sending = {number: threading.Lock() for number in self._links}
        self.ended = threading.Event()
        self.closed = False  # By process 0, and not because a process was lost.
        self.lost = ""
        self._readers = [
            threading.Thread(target=self._read, args=(number, link), name=f"flexjax-post-{number}", daemon=True)
            for number, link in self._links.items()
        ]
        for reader in self._readers:
            reader.start()

    def name(self, number: int) -> str:
        """A process with its host: "process 1 of 4 (host-b)"."""
        return f"process {number} of {self.count} ({self._hosts.get(number, 'host not known')})"

    def send(self, to: int, box: str, letter: Any) -> None:
        """Puts a letter, anything but None that can be pickled, into a box of process `to`; after the end nothing."""
        if to == self.index:
            self._box(box).put(letter)
            return
        number = to if self.index == 0 else 0
        try:
            with self._sending[number]:
                self._links[number].send((to, box, letter))
        except OSError:
            self._end(closed=False, lost=f"{self.name(number)} is gone")

    def take(self, box: str, timeout: float | None = None) -> Any | None:
        """The next letter; waits for it. None once everything has ended. `queue.Empty` after `timeout` seconds."""
        letters = self._box(box)
        letter = letters.get(timeout=timeout)
        if letter is None:
            letters.put(None)
        return letter

    def close(self) -> None:
        """Tells every process that this was all. Of process 0."""
        self._end(closed=True)  # First: the sooner told hang up while the others are still to be told.
        for number in self._links:
            self.send(number, "", None)
        for reader in self._readers:  # They hang up; a line that is cut with letters on it loses the last ones.
            reader.join(_HANG_UP_SECONDS)

    def abandon(self) -> None:
        """Ends everything for everyone, because this process cannot go on."""
        self._end(closed=False, lost=f"{self.name(self.index)} has failed")

    def _read(self, number: int, link: Connection) -> None:
        try:
            while True:
                to, box, letter = link.recv()
                if letter is None:
                    return self._end(closed=True)
                if box == _LOST:
                    return self._end(closed=False, lost=letter)
                self.send(to, box, letter)
        except (EOFError, OSError):
            self._end(closed=False, lost=f"{self.name(number)} is gone")
        except BaseException:  # A letter that cannot be read: whoever waits for it is not left waiting.
            logging.exception("A letter from another process cannot be read.")
            self._end(closed=False, lost=f"a letter from {self.name(number)} cannot be read")

    def _box(self, name: str) -> SimpleQueue[Any]:
        with self._changing:
            if name not in self._boxes:
                self._boxes[name] = SimpleQueue()
                if self.ended.is_set():
                    self._boxes[name].put(None)
            return self._boxes[name]

    def _end(self, closed: bool, lost: str = "") -> None:
        with self._changing:
            if self.ended.is_set():
                return
            self.closed, self.lost = closed, lost
            self.ended.set()
            for letters in self._boxes.values():
                letters.put(None)
        if self.index == 0 and not closed:
            for number in self._links:
                self.send(number, _LOST, lost)
        if self.index != 0 or not closed:
            for link in self._links.values():
                _hang_up(link)


def _hang_up(link: Connection) -> None:
    """Wakes whoever reads it, on both ends; to close it would not."""
    try:
        with socket.fromfd(link.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line:
            line.shutdown(socket.SHUT_RDWR)
    except OSError:  # The other end was first.
        pass


def _lead(count: int) -> tuple[dict[int, Connection], dict[int, str]]:
    """The line to each process, and the hosts of all."""
    key = secrets.token_bytes(_KEY_BYTES)
    with Listener(("", 0), backlog=count, authkey=key) as listener:
        _announced(key + int(listener.address[1]).to_bytes(4))
        arrived = [_watched(listener.accept()) for _ in range(count - 1)]
    links, hosts = {}, {0: socket.gethostname()}
    for link in arrived:
        index, hosts[index] = link.recv()
        links[index] = link
    return links, hosts


def _join(index: int) -> tuple[dict[int, Connection], dict[int, str]]:
    told = _announced(bytes(_KEY_BYTES + 4))
    port = int.from_bytes(told[_KEY_BYTES:])
    leader, own = distributed.coordinator_host(), socket.gethostname()
    link = _watched(Client((leader, port), authkey=told[:_KEY_BYTES]))
    link.send((index, own))
    return {0: link}, {0: leader, index: own}


def _watched(link: Connection) -> Connection:
    """The line, which from now on breaks when the other host is silent: one that lost its power says no goodbye."""
    if sys.platform == "linux":
        with socket.fromfd(link.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS // 3)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENT_SECONDS // 6)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _SILENT_SECONDS)
    return link


def _announced(own: bytes) -> bytes:
    """What process 0 says, of as many bytes."""
    return multihost_utils.broadcast_one_to_all(np.frombuffer(own, np.uint8)).astype(np.uint8).tobytes()
