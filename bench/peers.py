"""earlyoom and nohang, as Debian ships them, beside ours. They never see this machine short, and kill nobody.

earlyoom runs with ``--dryrun`` always. To have it go through all processes, its thresholds are set so that it believes
the machine short at every look; it then says what it found and sends nothing. nohang has no dry run, so it is never
run as a daemon: only ``--tasks`` (one scan, printed) and ``--check`` (its settings, printed), each of which ends.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_EARLYOOM = shutil.which("earlyoom")
_NOHANG = shutil.which("nohang", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_NOHANG_CONFIG = "/etc/nohang/nohang.conf"
# Debian's own arguments are "-r 3600": a report an hour.
_EARLYOOM_IDLE = ("--dryrun", "-r", "3600")
# Short of memory whatever there is: what is below 99 % gets SIGTERM, or would.
_EARLYOOM_SCANNING = ("--dryrun", "-r", "0", "-m", "99,98", "-s", "100,99")
_BEGIN, _END = b"low memory! at or below", b"sending SIG"
_LIMIT_S = 60.0
_NS_IN_MS = 1_000_000


def missing_earlyoom() -> list[str]:
    """Why it cannot be run here."""
    return [] if _EARLYOOM else ["earlyoom is not installed (Debian: apt-get install earlyoom)"]


def missing_nohang() -> list[str]:
    """Why it cannot be run here."""
    if _NOHANG and os.path.exists(_NOHANG_CONFIG):
        return []
    return ["nohang is not installed (Debian: apt-get install nohang)"]


@functools.cache
def name_earlyoom() -> str:
    """Its name and version."""
    assert _EARLYOOM is not None
    said = subprocess.run([_EARLYOOM, "-v"], capture_output=True, text=True, check=True)
    return (said.stdout or said.stderr).splitlines()[0].strip()


@contextlib.contextmanager
def earlyoom() -> Iterator[subprocess.Popen[bytes]]:
    """An idle earlyoom with Debian's arguments, in dry run, that has looked once."""
    with _earlyoom(_EARLYOOM_IDLE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        _read_until(process.stdout.fileno(), b"mem avail:")
        yield process


def time_earlyoom_scans(count: int) -> list[int]:
    """How long it took to go through all processes, so many times, in ns.

    Both ends are lines that it writes right before and right after: it says that memory is low, looks for the largest,
    and says whom it would kill.

    Raises:
        StageError: It did not.
    """
    times: list[int] = []
    with _earlyoom(_EARLYOOM_SCANNING, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        fileno = process.stderr.fileno()
        while len(times) < count:
            _, began_ns = _read_until(fileno, _BEGIN)
            said, ended_ns = _read_until(fileno, _END)
            if _BEGIN not in said:  # else we were late, and both came together
                times.append(ended_ns - began_ns)
    return times


def time_earlyoom_start() -> int:
    """From its start to its first report, in ns: it is locked and has looked at the memory by then."""
    started_ns = time.monotonic_ns()
    with _earlyoom(_EARLYOOM_IDLE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        return _read_until(process.stdout.fileno(), b"mem avail:")[1] - started_ns


def time_nohang_scan() -> int:
    """How long one scan took by nohang's own account, in ns; it counts whole milliseconds.

    Raises:
        StageError: It does not say.
    """
    table, _ = _run_nohang("--tasks")
    found = re.search(rb"found in (\d+)ms", table)
    if found is None:
        message = f"nohang --tasks does not say how long it took: {table[-200:]!r}"
        raise StageError(message)
    return int(found[1]) * _NS_IN_MS


def read_nohang_peak_kib() -> int:
    """The most that ``nohang --check`` held resident."""
    return _run_nohang("--check")[1]


def _run_nohang(option: str) -> tuple[bytes, int]:
    """What it printed, and its largest resident set in KiB."""
    if option not in {"--tasks", "--check"}:
        raise StageError("nohang is never run here as a daemon: it would kill on this machine")
    assert _NOHANG is not None
    command = [_NOHANG, "--config", _NOHANG_CONFIG, option]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = f"{' '.join(command)} ended with {process.returncode}"
        raise StageError(message)
    return printed, usage.ru_maxrss


@contextlib.contextmanager
def _earlyoom(arguments: Sequence[str], *, stdout: int, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    if "--dryrun" not in arguments:
        raise StageError("earlyoom is never run here without --dryrun: it would kill on this machine")
    assert _EARLYOOM is not None
    process = subprocess.Popen([_EARLYOOM, *arguments], stdout=stdout, stderr=stderr, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _read_until(fileno: int, words: bytes) -> tuple[bytes, int]:
    """Read until it has said so; all that it said since the last call, and when (monotonic ns).

    Raises:
        StageError: It did not say so.
    """
    said = b""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    deadline_s = time.monotonic() + _LIMIT_S
    while words not in said:
        is_readable = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        heard = os.read(fileno, 1 << 16) if is_readable else b""
        seen_ns = time.monotonic_ns()
        if not heard:
            message = f"earlyoom did not say {words!r}, but {said!r}"
            raise StageError(message)
        said += heard
    return said, seen_ns
