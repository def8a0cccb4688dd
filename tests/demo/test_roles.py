"""A role ends, whatever becomes of who started it: each of its nets alone holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import oomreaper
from tests.victims import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = str(16 << 20)
_SOURCE = str(Path(oomreaper.__file__).parent.parent)
_LIMIT_S = 20.0
# Starts a role, tells its pid on stderr once it has spoken, and waits to be killed.
_STARTER = """
import os, signal, subprocess, sys
role = subprocess.Popen(sys.argv[1:-1] + [str(os.getpid()), sys.argv[-1]], stdout=subprocess.PIPE)
role.stdout.readline()
print(role.pid, file=sys.stderr, flush=True)
signal.pause()
"""


def program(*, before: str = "", role: str = "victim") -> list[str]:
    """A Python that plays a role; its parent's pid and the role's arguments come after."""
    script = f"import sys; sys.path.append({_SOURCE!r}); from oomreaper.demo import roles; {before}"
    script += f"roles.main({role!r}, int(sys.argv[1]), sys.argv[2:])"
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.fixture
def leash() -> Iterator[tuple[int, int]]:
    """A pipe for a role's stdin, whose writing end stays open here."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("role", ["victim", "meter"])
def test_the_end_of_its_orders_ends_it(role: str) -> None:
    """A role whose stdin ends goes by itself, without an error."""
    own_start = str(processes.start_time_ticks(os.getpid()))
    arguments = {"victim": [SIZE], "meter": [str(os.getpid()), own_start]}[role]
    with subprocess.Popen(
        [*program(role=role), str(os.getpid()), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as played:
        assert played.stdin is not None
        assert played.stdout is not None
        played.stdout.readline()
        played.stdin.close()
        status = played.wait(_LIMIT_S)

    assert status == 0


def test_its_parents_death_ends_it(leash: tuple[int, int]) -> None:
    """A role whose parent is killed goes with it, though its orders have not ended."""
    command = [sys.executable, "-c", _STARTER, *program(), SIZE]
    with subprocess.Popen(command, stdin=leash[0], stderr=subprocess.PIPE) as starter:
        assert starter.stderr is not None
        pid = int(starter.stderr.readline())
        start_time = processes.start_time_ticks(pid)
        was_alive = not processes.is_gone(pid, start_time)
        starter.kill()

    assert was_alive
    assert processes.wait_until(lambda: processes.is_gone(pid, start_time), _LIMIT_S)


def test_an_alarm_ends_it(leash: tuple[int, int]) -> None:
    """A role that everybody has forgotten ends by its own alarm, set below a minute, also if born deaf to it."""
    from oomreaper.demo import roles

    deaf = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [14]); signal.signal(14, signal.SIG_IGN); "
    command = [*program(before=f"roles._BOUND_SECONDS = 1; {deaf}"), str(os.getpid()), SIZE]
    done = subprocess.run(command, stdin=leash[0], stdout=subprocess.PIPE, check=False, timeout=_LIMIT_S)

    assert done.returncode == -signal.SIGALRM
    assert roles._BOUND_SECONDS < 60


def test_a_parent_that_has_gone_already_is_noticed(leash: tuple[int, int]) -> None:
    """A role that comes to life after its parent's death does nothing."""
    nobody = "1"
    command = [*program(), nobody, SIZE]
    done = subprocess.run(command, stdin=leash[0], stdout=subprocess.PIPE, check=False, timeout=_LIMIT_S)

    assert (done.returncode, done.stdout) == (0, b"")


def test_a_recycled_pid_is_neither_traced_nor_watched(leash: tuple[int, int]) -> None:
    """A tracer or meter that finds another process under the pid refuses, and lets it be."""
    another_start = str((processes.start_time_ticks(os.getpid()) or 0) + 1)
    for role in ("tracer", "meter"):
        command = [*program(role=role), str(os.getpid()), str(os.getpid()), another_start]
        done = subprocess.run(command, stdin=leash[0], stdout=subprocess.PIPE, check=False, timeout=_LIMIT_S)

        assert done.stdout.startswith(b"refused\t3\t")
