# SPDX-License-Identifier: Apache-2.0
"""The agent's end of QEMU's monitor, by the package ``qemu.qmp``.

A kernel that panics boots again at once (``panic=-1``), as after a reboot that was asked for; QEMU
says no more than that it was reset. A guest that is reset before it got ready will not get ready
the next time either: then it is ended, so that whoever waits for it learns of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

__all__ = ["Monitor"]

_ANSWER_SECONDS: Final = 2.0


class Monitor:
    """One QEMU's monitor.

    Attributes:
        resets: How often the guest was reset since QEMU started.
    """

    def __init__(self, name: str, on_reset: Callable[[], None]) -> None:
        """Nothing is connected yet; `on_reset` is called at each reset."""
        self.resets = 0
        self._client = QMPClient(name)
        self._client.logger.setLevel(logging.CRITICAL)
        self._on_reset = on_reset
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    def connect(self, stream: socket.socket) -> None:
        """Talk to a QEMU that is about to start; `stream` is this object's from here on."""
        self._task = asyncio.create_task(self._run(stream))

    async def _run(self, stream: socket.socket) -> None:
        try:
            await self._client.connect(stream)
            self._connected.set()
            async for event in self._client.events:
                if event["event"] == "RESET":
                    self.resets += 1
                    self._on_reset()
        except (ConnectError, QMPError, OSError, EOFError):
            pass  # QEMU has ended; its process tells who is to know
        finally:
            self._connected.clear()
            stream.close()

    async def execute(self, command: str, **arguments: Any) -> bool:
        """Run a command.

        Returns:
            Whether QEMU did it; not when it has ended, or does not answer.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._connected.wait()
                await self._client.execute(command, arguments or None)
        except (TimeoutError, ExecuteError, QMPError, OSError, EOFError):
            return False
        return True

    async def close(self) -> None:
        """End the conversation."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
