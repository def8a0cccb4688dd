"""PROFILE, KILL_UNIT and RECLAIM by a real worker, on processes that the test started itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import cgroup, proc, syscalls
from oomreaper.model.identity import Identity
from oomreaper.model.sample import Wish
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.jobs import (
    Job,
    JobKind,
    Profiled,
    ProfileOrder,
    Reclaimed,
    ReclaimOrder,
    UnitKilled,
    UnitOrder,
)
from oomreaper.reaper.worker.child import WorkerChild
from tests.victims.processes import kill_exactly, start_time_ticks, wait_until
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SLEEP = "import signal; print('ready', flush=True); signal.pause()"


@pytest.fixture
def worker() -> Iterator[WorkerChild]:
    """A worker's work, in this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = proc.open_root()
    child = WorkerChild(theirs, root, Ourselves(frozenset({os.getpid()}), frozenset(), os.getpgrp(), os.getsid(0)))
    try:
        yield child
    finally:
        for descriptor in (root, *child._reserve):
            os.close(descriptor)
        ours.close()
        theirs.close()


@contextlib.contextmanager
def sleepers(count: int) -> Iterator[list[Identity]]:
    """So many processes in one session and process group of their own; all gone afterwards."""
    code = (
        "import os, signal\n"
        f"pids = []\nfor _ in range({count - 1}):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        signal.alarm(60)\n"
        "        signal.pause()\n"
        "    pids.append(pid)\n"
        "print(*pids, flush=True)\n"
        "signal.pause()\n"
    )
    leader = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    lives: list[Identity] = []
    try:
        assert leader.stdout is not None
        pids = [leader.pid, *(int(word) for word in leader.stdout.readline().split())]
        lives = [Identity(pid, start_time_ticks(pid) or 0) for pid in pids]
        yield lives
    finally:
        for life in lives:
            kill_exactly(life.pid, life.start_time_ticks)
        leader.kill()
        leader.wait()
        assert leader.stdout is not None
        leader.stdout.close()
        assert wait_until(lambda: all(is_dead(life) for life in lives), timeout_s=5)


def is_dead(life: Identity) -> bool:
    """Whether that life is over, waited for or not."""
    if start_time_ticks(life.pid) != life.start_time_ticks:
        return True
    with contextlib.suppress(OSError), open(f"/proc/{life.pid}/stat", "rb") as file:
        return proc.parse_stat(file.read()).state in "ZX"
    return True


def protect(monkeypatch: pytest.MonkeyPatch, life: Identity) -> None:
    """Have this life read as -1000; to write that takes CAP_SYS_RESOURCE, which not every machine of ours gives."""
    real = proc.read_oom_score_adj

    def read(process: int) -> int | None:
        stat = proc.read_stat(process)
        return -1000 if stat is not None and stat.identity == life else real(process)

    monkeypatch.setattr(proc, "read_oom_score_adj", read)


def kill_unit(worker: WorkerChild, order: UnitOrder) -> UnitKilled:
    """The worker's answer."""
    answer = worker.do(Job(JobKind.KILL_UNIT, 0, None, order=order), None)
    assert isinstance(answer, UnitKilled)
    return answer


def test_a_process_group_of_thirty_dies(worker: WorkerChild) -> None:
    """Named by its number alone: everybody in it is found and signalled; the rest of the machine is not."""
    with sleepers(30) as lives, sleepers(1) as (bystander,):
        answer = kill_unit(worker, UnitOrder(tuple(lives[:1]), process_group=lives[0].pid))

        assert set(answer.killed) == set(lives)
        assert answer.killed_count == 30
        assert answer.refused == ()
        assert wait_until(lambda: all(is_dead(life) for life in lives), timeout_s=5)
        assert not is_dead(bystander)


def test_who_was_born_before_the_swarm_is_left_alone(worker: WorkerChild) -> None:
    """Members of the group that are older than asked for are not gone after."""
    with sleepers(3) as lives:
        answer = kill_unit(worker, UnitOrder((), process_group=lives[0].pid, born_after_ticks=2**60))

        assert answer.killed == ()
        assert not any(is_dead(life) for life in lives)


def test_a_recycled_life_is_not_signalled(worker: WorkerChild) -> None:
    """Another start time under the same pid is somebody else."""
    with sleepers(1) as (life,):
        answer = kill_unit(worker, UnitOrder((life._replace(start_time_ticks=life.start_time_ticks - 1),)))

        assert answer == UnitKilled((), (), 1, 0)
        assert not is_dead(life)


def test_a_protected_member_is_left_out_and_named(worker: WorkerChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """-1000 means never; so does our own pid, and our own process group is not gone through."""
    with sleepers(3) as lives:
        protect(monkeypatch, lives[0])
        ours = Identity(os.getpid(), start_time_ticks(os.getpid()) or 0)
        answer = kill_unit(worker, UnitOrder((ours, *lives), process_group=os.getpgrp()))

        assert set(answer.killed) == {lives[1], lives[2]}
        assert any("-1000" in reason for reason in answer.refused)
        assert any("oomreaper itself" in reason for reason in answer.refused)
        assert any("own" in reason for reason in answer.refused)
        assert not is_dead(lives[0])


@pytest.mark.needs("cc", "root", "cgroup_v2")
def test_a_control_group_is_killed_at_once(worker: WorkerChild) -> None:
    """cgroup.kill ends all of it, and the answer names them."""
    with own_cgroup(None) as directory, sleepers(5) as lives:
        for life in lives:
            (directory / "cgroup.procs").write_text(str(life.pid))
        answer = kill_unit(worker, UnitOrder((), cgroup_directory=str(directory)))

        assert set(answer.killed) == set(lives)
        assert wait_until(lambda: all(is_dead(life) for life in lives), timeout_s=5)


@pytest.mark.needs("cc", "root", "cgroup_v2")
def test_a_control_group_with_a_protected_member_is_killed_one_by_one(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cgroup.kill would spare nobody: it is not used, and the protected one lives."""
    with own_cgroup(None) as directory, sleepers(4) as lives:
        for life in lives:
            (directory / "cgroup.procs").write_text(str(life.pid))
        protect(monkeypatch, lives[0])
        answer = kill_unit(worker, UnitOrder((), cgroup_directory=str(directory)))

        assert set(answer.killed) == set(lives) - {lives[0]}
        assert wait_until(lambda: is_dead(lives[3]), timeout_s=5)
        assert not is_dead(lives[0])


@pytest.mark.needs("root", "cgroup_v2")
def test_a_hierarchy_s_root_is_no_unit(worker: WorkerChild) -> None:
    """Whatever a plan says: the root of a hierarchy stands for the machine, and nobody there is gone after."""
    mount = next(mount for mount in cgroup.read_mounts(worker._proc) if mount.version == 2)
    for directory in (mount.directory, f"{mount.directory}/", f"{mount.directory}/a/..", "/"):
        answer = kill_unit(worker, UnitOrder((), cgroup_directory=directory))

        assert answer.killed_count == 0
        assert "no control group below a root" in answer.refused[0]


def test_a_profile_tells_program_arguments_and_group(worker: WorkerChild) -> None:
    """NULs become spaces, a hostile argument stays bytes, a life that is over is None."""
    arguments: list[str | bytes] = [sys.executable, "-I", "-S", "-c", SLEEP, "foo) Z \n\x1b", b"\xff"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        life = Identity(process.pid, start_time_ticks(process.pid) or 0)
        over = life._replace(start_time_ticks=1)
        answer = worker.do(Job(JobKind.PROFILE, 0, None, order=ProfileOrder((life, over))), None)
        bare = worker.do(Job(JobKind.PROFILE, 0, None, order=ProfileOrder((life,), with_cmdline=False)), None)
    finally:
        process.kill()
        process.communicate()

    assert isinstance(answer, Profiled)
    assert isinstance(bare, Profiled)
    profile = answer.rows[0].profile
    assert profile is not None
    assert profile.exe == os.path.realpath(sys.executable).encode()
    assert profile.cmdline == b" ".join(os.fsencode(word) for word in arguments)
    assert profile.cgroup is not None
    assert profile.cgroup.startswith("/")
    assert answer.rows[1] == (over, None)
    assert bare.rows[0].profile == profile._replace(cmdline=None)


@pytest.mark.needs("cc", "root", "cgroup_v2")
def test_a_wish_is_heard_where_the_owner_of_the_group_may_be_trusted(worker: WorkerChild) -> None:
    """oomd_avoid of root's group counts, omit goes before it, and an ordinary user's group says nothing."""
    wishes: list[Wish | None] = []
    with own_cgroup(None) as directory, sleepers(1) as (life,):
        (directory / "cgroup.procs").write_text(str(life.pid))

        def look() -> None:
            answer = worker.do(Job(JobKind.PROFILE, 0, None, order=ProfileOrder((life,))), None)
            assert isinstance(answer, Profiled)
            assert answer.rows[0].profile is not None
            wishes.append(answer.rows[0].profile.wish)

        look()
        os.setxattr(directory, "user.oomd_avoid", b"1")
        look()
        os.setxattr(directory, "user.oomd_omit", b"1")
        look()
        os.chown(directory, 12345, -1)
        look()
        os.kill(life.pid, signal.SIGKILL)
        assert wait_until(lambda: is_dead(life), timeout_s=5)

    assert wishes == [None, Wish.AVOID, Wish.OMIT, None]


FILE_USER = """
import mmap, signal, sys
file = open(sys.argv[1], "r+b")
memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
sum(memory[at] for at in range(0, len(memory), 4096))
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.needs("root")
def test_pages_of_a_private_file_are_moved_out(worker: WorkerChild) -> None:
    """process_madvise(MADV_PAGEOUT): clean pages of a mapping that nobody shares leave the process."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(32 * MIB))
        file.flush()
        os.fsync(file.fileno())
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FILE_USER, file.name], stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            life = Identity(process.pid, start_time_ticks(process.pid) or 0)
            pidfd = syscalls.pidfd_open(process.pid)
            order = ReclaimOrder(1 << 40, life=life)
            answer = worker.do(Job(JobKind.RECLAIM, 0, None, order=order), pidfd)
            os.close(pidfd)
        finally:
            process.kill()
            process.communicate()

    assert isinstance(answer, Reclaimed)
    assert answer.problem is None
    assert answer.bytes_asked >= 32 * MIB
    assert answer.bytes_moved is not None
    assert answer.bytes_moved >= 16 * MIB


def test_a_refused_reclaim_says_why(worker: WorkerChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSYS of the call and a group without memory.reclaim are words in the answer, not errors."""

    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    with sleepers(1) as (life,):
        pidfd = syscalls.pidfd_open(life.pid)
        monkeypatch.setattr(syscalls, "process_madvise", refuse)
        answer = worker.do(Job(JobKind.RECLAIM, 0, None, order=ReclaimOrder(MIB, life=life)), pidfd)
        os.close(pidfd)
    of_group = worker.do(Job(JobKind.RECLAIM, 0, None, order=ReclaimOrder(MIB, directory="/nowhere")), None)

    assert isinstance(answer, Reclaimed)
    assert isinstance(of_group, Reclaimed)
    assert "ENOSYS" in (answer.problem or "")
    assert "ENOENT" in (of_group.problem or "")


BOMB = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.alarm(30)
print("ready", flush=True)
while True:
    try:
        if os.fork() == 0:
            signal.alarm(30)
    except OSError:
        pass
"""


@pytest.mark.needs("cc", "root", "cgroup_v1_freezer")
def test_a_bounded_fork_bomb_is_ended_by_passes(worker: WorkerChild) -> None:
    """Forty processes that fork whenever they can: gone through until nobody new is found, all dead."""
    with own_cgroup("pids") as directory:
        (directory / "pids.max").write_text("40")
        code = f"import os; open({str(directory / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" + BOMB
        bomb = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True
        )

        def members() -> list[int]:
            return [int(word) for word in (directory / "cgroup.procs").read_text().split()]

        try:
            assert bomb.stdout is not None
            bomb.stdout.readline()
            assert wait_until(lambda: len(members()) >= 35, timeout_s=10)
            answers = [kill_unit(worker, UnitOrder((), process_group=bomb.pid))]
            is_over = wait_until(lambda: not members(), timeout_s=2)
        finally:
            (directory / "pids.max").write_text("0")  # whatever the test says: nobody forks any more
            while members():
                kill_unit(worker, UnitOrder((), cgroup_directory=str(directory)))
            bomb.wait()
            assert bomb.stdout is not None
            bomb.stdout.close()

    assert answers[0].killed_count >= 35
    assert 2 <= answers[0].passes <= 10
    assert is_over
