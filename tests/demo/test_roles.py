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
from oomreaper.demo import roles
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


@pytest.mark.parametrize("role", ["victim", "meter", "idle", "hog", "gauge"])
def test_the_end_of_its_orders_ends_it(role: str) -> None:
    """A role whose stdin ends goes by itself, without an error."""
    own_start = str(processes.start_time_ticks(os.getpid()))
    arguments = {
        "victim": [SIZE],
        "meter": [str(os.getpid()), own_start],
        "idle": [SIZE],
        "hog": [SIZE, "100"],
        "gauge": ["/proc/sys/kernel/pid_max"],
    }[role]
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


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_hog_does_not_end_when_it_is_asked_to(is_begun: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """SIGTERM neither ends it nor keeps it from taking all of its memory, whether it comes before or in between."""
    milliseconds = 300
    with subprocess.Popen(
        [*program(role="hog"), str(os.getpid()), SIZE, str(milliseconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as hog:
        assert hog.stdin is not None
        assert hog.stdout is not None
        hog.stdout.readline()
        if not is_begun:
            hog.send_signal(signal.SIGTERM)
        hog.stdin.write(b"take\n")
        hog.stdin.flush()
        said = [hog.stdout.readline()]
        if is_begun:
            hog.send_signal(signal.SIGTERM)
        said.append(hog.stdout.readline())
        held_kib = int(processes.status_fields(hog.pid)["RssAnon"].split()[0])
        hog.kill()

    assert said == [b"taking\n", b"full\n"]
    assert held_kib >= int(SIZE) >> 10


def start_warden(tmp_path: Path, stdin: int) -> subprocess.Popen[bytes]:
    """A warden of a group (a plain directory here) and of a folder with a socket in it."""
    for name in ("group", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / roles.EVENTS_NAME).write_text("")
    command = [*program(role="warden"), str(os.getpid()), str(tmp_path / "group"), str(tmp_path / "folder")]
    warden = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE)
    assert warden.stdout is not None
    assert warden.stdout.readline() == b"ready\n"
    return warden


def test_a_warden_removes_when_its_orders_end(tmp_path: Path) -> None:
    """It keeps its hands off while whoever started it lives, SIGTERM or not; then all that it knows of is removed."""
    with start_warden(tmp_path, subprocess.PIPE) as warden:
        assert warden.stdin is not None
        warden.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            warden.wait(0.3)
        is_there_before = (tmp_path / "folder" / roles.EVENTS_NAME).exists() and (tmp_path / "group").exists()
        warden.stdin.close()
        status = warden.wait(_LIMIT_S)

    assert is_there_before
    assert status == 0
    assert list(tmp_path.iterdir()) == []


def test_a_warden_waits_until_a_group_is_empty(tmp_path: Path) -> None:
    """A group that is still in use is tried again until it can be removed, and one that has gone is no trouble."""
    with start_warden(tmp_path, subprocess.PIPE) as warden:
        assert warden.stdin is not None
        (tmp_path / "group" / "member").write_text("")
        warden.stdin.close()
        is_folder_gone = processes.wait_until(lambda: not (tmp_path / "folder").exists(), _LIMIT_S)
        is_group_there = (tmp_path / "group").exists()
        (tmp_path / "group" / "member").unlink()
        status = warden.wait(_LIMIT_S)

    assert (is_folder_gone, is_group_there, status) == (True, True, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_warden_outlives_its_parent(tmp_path: Path) -> None:
    """When whoever started it is killed, its orders have ended: it removes what there is, and ends."""
    (tmp_path / "group").mkdir()
    starter = _STARTER.replace("stdout=subprocess.PIPE)", "stdin=subprocess.PIPE, stdout=subprocess.PIPE)")
    starter = starter.replace(
        "sys.argv[1:-1] + [str(os.getpid()), sys.argv[-1]]", "sys.argv[1:-2] + [str(os.getpid()), *sys.argv[-2:]]"
    )
    command = [sys.executable, "-c", starter, *program(role="warden"), str(tmp_path / "group"), str(tmp_path / "none")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        assert parent.stderr is not None
        pid = int(parent.stderr.readline())
        start_time = processes.start_time_ticks(pid)
        was_there = (tmp_path / "group").exists()
        parent.kill()

    assert was_there
    assert processes.wait_until(lambda: processes.is_gone(pid, start_time), _LIMIT_S)
    assert list(tmp_path.iterdir()) == []
