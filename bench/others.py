"""What the reaper is compared with: SIGKILL alone, and the bare system calls in C."""

from __future__ import annotations

import functools
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tests.victims.program import StageError, run_directory

_SOURCES = Path(__file__).parent
_NS_IN_MS = 1_000_000
_LIMIT_S = 30.0


class Bare(NamedTuple):
    """What ``strike`` says; times are CLOCK_MONOTONIC in ns."""

    realtime: int
    signal_errno: int
    mrelease_errno: int
    attempts: int
    signal_ns: int
    released_ns: int
    verified_ns: int
    left_kib: int

    @property
    def released_ms(self) -> float:
        """From before the signal until process_mrelease came back: the calls and nothing else."""
        return (self.released_ns - self.signal_ns) / _NS_IN_MS


def sigkill(pidfd: int) -> int:
    """SIGKILL and nothing else; the monotonic time in ns right before it."""
    signal_ns = time.monotonic_ns()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return signal_ns


def strike(pid: int) -> Bare:
    """Run the C program on a victim.

    Raises:
        StageError: It failed, or left memory.
    """
    done = subprocess.run(
        [str(compiled_strike()), str(pid)], capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        message = f"strike {pid}: {done.stderr}"
        raise StageError(message)
    fields = dict(field.split("=") for field in done.stdout.split())
    bare = Bare(**{name: int(value) for name, value in fields.items()})
    if bare.signal_errno or bare.left_kib:
        message = f"strike {pid} did not free it: {done.stdout}"
        raise StageError(message)
    return bare


def compiled_strike() -> Path:
    """The C program, compiled once a run."""
    return compiled("strike")


@functools.cache
def compiled(name: str, *options: str) -> Path:
    """One of the bench's own C programs, compiled once a run.

    Raises:
        StageError: There is no compiler, or it refused.
    """
    program, source = run_directory() / name, _SOURCES / f"{name}.c"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", *options, "-o", str(program), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        message = "no C compiler: install one that answers to `cc`"
        raise StageError(message) from error
    if done.returncode:
        message = f"cc refused {source}:\n{done.stderr}"
        raise StageError(message)
    return program
