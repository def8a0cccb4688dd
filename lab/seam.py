"""Between the host and a guest: what a machine is made of, what is heard from it, who makes one. Pure.

The runner knows no qemu, and whoever makes guests knows no scenario: both know this. A guest takes commands and says
messages, both of them JSON objects, a line each. A command has an ``id`` and says in ``do`` what is wanted; its answer
is ``{"event": "answer", "id": ..., "ok": ...}``. What is said unasked: ``line`` (a program's output), ``ended`` (a
program), ``trace`` (a line of the kernel's tracer), and ``beat`` (the probe's heartbeat, on a port of its own).

``at_ns`` of what was heard is the *host's* monotonic clock: a guest that stalls cannot tell for how long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

# Where the programs of the lab lie in every image.
HOME = "/usr/lib/oomreaper-lab"
# Serial ports as the guest names them. A write to one allocates nothing in the guest, so it works in any shortage.
AGENT_PORT = "/dev/ttyS1"
PROBE_PORT = "/dev/ttyS2"


class GuestLostError(Exception):
    """The guest has ended, or has been silent for so long that it was ended. A result, not a fault of the lab."""


class MachineSpec(NamedTuple):
    """All that a machine is made of; two runs with the same one can start from the same snapshot."""

    image: str
    kernel: str
    memory_mib: int
    cpus: int
    zram_mib: int
    swap_mib: int


class Heard(NamedTuple):
    """A message, and when the host had read it."""

    at_ns: int
    message: Mapping[str, Any]


class Guest(Protocol):
    """One machine that is up."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its answer to ``hello``."""

    @property
    def console(self) -> Path:
        """The file that its kernel's messages go to."""

    def send(self, command: Mapping[str, Any]) -> None:
        """Say a command to its agent.

        Raises:
            GuestLostError: It has ended.
        """

    def hear(self, timeout_s: float) -> Heard | None:
        """The next message of any port, waited for no longer than that.

        Raises:
            GuestLostError: It has ended.
        """


class Maker(Protocol):
    """Who makes machines."""

    def open(self, spec: MachineSpec) -> AbstractContextManager[Guest]:
        """A fresh machine, ready; ended with the block."""

    def estimate_s(self, spec: MachineSpec) -> float:
        """How long it will probably take to be ready; 0 when that is not known."""
