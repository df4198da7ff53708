# SPDX-License-Identifier: Apache-2.0
"""A guest's console: what it said last, and those who look at it and type.

The guest may write without end and the clients may read slowly or not at all: neither makes memory
grow nor holds up the other. There is one buffer of bounded size, and each client has a position in
the stream that went through it; whoever lags behind by more than the buffer misses what is between.
What clients type is kept only as far as the guest takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["CONSOLE_BYTES", "Console", "Scrollback"]

CONSOLE_BYTES: Final = 256 * 1024
_SCREEN_BYTES: Final = 4096
_SCREEN_LINES: Final = 24
_PACKET: Final = 32 * 1024
_TYPED_BYTES: Final = 4096  # of input that the guest has not taken yet
_CLIENTS_MAX: Final = 16


class Scrollback:
    """The end of a stream of bytes.

    Attributes:
        total: Bytes that the stream had so far.
    """

    def __init__(self, size: int = CONSOLE_BYTES) -> None:
        self.total = 0
        self._size = size
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        """Add to the stream's end."""
        self.total += len(data)
        self._data += data
        if len(self._data) > 2 * self._size:  # not each time: it moves what is kept
            del self._data[: -self._size]

    def since(self, position: int, most: int) -> tuple[bytes, int]:
        """Return bytes from a position on, or from the oldest that is left.

        Args:
            position: Counted from the begin of the stream.
            most: Longest answer.

        Returns:
            The bytes and the position after them.
        """
        kept = min(len(self._data), self._size)
        position = max(position, self.total - kept)
        start = len(self._data) - (self.total - position)
        data = bytes(self._data[start : start + most])
        return data, position + len(data)

    def text(self) -> str:
        """Return all that is left, as text."""
        return self._data[-self._size :].decode(errors="replace").replace("\r\n", "\n")

    def screen(self) -> int:
        """Return the position at which the last screenful begins."""
        tail = self._data[-_SCREEN_BYTES:]
        lines = tail.splitlines(keepends=True)[-_SCREEN_LINES:]
        return self.total - sum(map(len, lines))


class Console:
    """One guest's console; the streams of its boots come one after the other.

    Attributes:
        log: What the guest said.
        open: Whether a guest has the other end.
    """

    def __init__(self, on_output: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """Nothing is connected yet; the callbacks are told of output and of the stream's end."""
        self.log = Scrollback()
        self.open = False
        self._stream: socket.socket | None = None
        self._typed = bytearray()
        self._on_output, self._on_end = on_output, on_end
        self._more = asyncio.Event()
        self._clients = 0

    def connect(self, stream: socket.socket) -> None:
        """Take the host's end of a new guest's console."""
        self.disconnect()
        stream.setblocking(False)
        self._stream, self.open = stream, True
        self._typed.clear()
        asyncio.get_running_loop().add_reader(stream, self._read)

    def disconnect(self) -> None:
        """Let go of the present guest's console."""
        stream, self._stream, self.open = self._stream, None, False
        if stream is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(stream)
            loop.remove_writer(stream)
            stream.close()

    def _read(self) -> None:
        assert self._stream is not None
        try:
            data = self._stream.recv(_PACKET)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            self._on_end()
            return
        self.log.append(data)
        self._on_output(data)
        self._more.set()

    def type(self, data: bytes) -> None:
        """Send input to the guest; what it does not take for long is dropped."""
        if self._stream is None:
            return
        self._typed += data[: max(0, _TYPED_BYTES - len(self._typed))]
        self._flush()

    def _flush(self) -> None:
        assert self._stream is not None
        loop = asyncio.get_running_loop()
        try:
            del self._typed[: self._stream.send(self._typed)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._typed.clear()  # the reader finds out that it has ended
        if self._typed:
            loop.add_writer(self._stream, self._flush)
        else:
            loop.remove_writer(self._stream)

    async def serve(self, client: socket.socket) -> None:
        """Join a client until it leaves: packets of bytes, both ways.

        Args:
            client: SOCK_SEQPACKET, non-blocking; the caller's to close.

        Raises:
            OSError: There are too many clients.
        """
        if self._clients >= _CLIENTS_MAX:
            raise OSError(f"{_CLIENTS_MAX} clients have this console open already; close one")
        self._clients += 1
        writer = asyncio.create_task(self._show(client))
        try:
            loop = asyncio.get_running_loop()
            while data := await loop.sock_recv(client, _PACKET):
                self.type(data)
        except OSError:
            pass  # it has gone
        finally:
            self._clients -= 1
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    async def _show(self, client: socket.socket) -> None:
        """Send a client the last screenful and what follows."""
        loop = asyncio.get_running_loop()
        position = self.log.screen()
        with contextlib.suppress(OSError):  # it has gone; the reading side finds out
            while True:
                data, position = self.log.since(position, _PACKET)
                if data:
                    await loop.sock_sendall(client, data)
                else:
                    self._more.clear()
                    await self._more.wait()
