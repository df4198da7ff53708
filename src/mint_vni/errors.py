# SPDX-License-Identifier: Apache-2.0
"""Everything that Mint VNI raises on purpose: one tree below `MintError`.

::

    MintError
    ├── LabFileError      exit 2    the lab file says something that cannot be
    ├── LabStateError     exit 3    no such lab, already up, several labs, no such node
    ├── PlatformError     exit 4    this machine lacks TUN, a right, a program, descriptors
    ├── NodeError         exit 5    a node did not start or did not get ready
    ├── FabricError       exit 6    regions and channels
    │   ├── FrameError              a frame that is too short or too long; also a ValueError
    │   ├── ChannelFull             no room within the time-out; also a TimeoutError
    │   └── ReceiveTimeout          nothing came within the time-out; also a TimeoutError
    └── InternalError     exit 70   a mistake of Mint VNI itself

``str()`` of each is one sentence for a user: it names the thing, what is wrong and the remedy.
The command line prints that sentence and ends with `MintError.exit_code`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ChannelFull",
    "FabricError",
    "FrameError",
    "InternalError",
    "LabFileError",
    "LabStateError",
    "MintError",
    "NodeError",
    "PlatformError",
    "ReceiveTimeout",
]


class MintError(Exception):
    """Base of all errors that Mint VNI raises on purpose.

    Attributes:
        exit_code: What the ``mint`` command exits with when this error ends it.
    """

    exit_code: ClassVar[int] = 1


class LabFileError(MintError):
    """A lab file, or a lab given as text or as a dictionary, that cannot become a lab.

    ``str()`` reads ``pair.yaml:7: node a: cpus: this machine has no CPU 9; choose from 0-1``.

    Attributes:
        file: The file as the user named it, or ``<memory>``.
        line: Line in that file, counted from 1; None where there is no such line.
        problem: The thing and what is wrong with it.
        remedy: What to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, file: str, line: int | None, problem: str, remedy: str) -> None:
        """Keep the parts of the sentence; see the class for what they are."""
        # All four are passed on, so that the exception can be pickled and copied.
        super().__init__(file, line, problem, remedy)
        self.file = file
        self.line = line
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        """Place, problem and remedy as one sentence."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.problem}; {self.remedy}"


class LabStateError(MintError):
    """The lab is not in the state that the request needs.

    No such lab, already up, several labs where one was to be guessed, no such node.
    """

    exit_code: ClassVar[int] = 3


class PlatformError(MintError):
    """This machine lacks what is needed: TUN, a permission, a program, descriptors, memory."""

    exit_code: ClassVar[int] = 4


class NodeError(MintError):
    """A node did not start, did not get ready in time, or ended by itself."""

    exit_code: ClassVar[int] = 5


class FabricError(MintError):
    """A region, a channel or a port of the fabric refused."""

    exit_code: ClassVar[int] = 6


class FrameError(FabricError, ValueError):
    """A frame that is shorter than an Ethernet header or longer than a record can hold.

    Nothing of it was written.
    """


class ChannelFull(FabricError, TimeoutError):
    """The channel to the receiver had no room within the time-out."""


class ReceiveTimeout(FabricError, TimeoutError):
    """No frame came within the time-out."""


class InternalError(MintError):
    """A mistake of Mint VNI itself; please report it."""

    exit_code: ClassVar[int] = 70
