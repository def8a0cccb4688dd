"""Bad input, each with a clear message and the contract's exit status; and sandboxes that refuse.

Whoever is named here and was not started by the test (init, a kernel thread, the tests themselves) is named in a dry
run only: a defect must not cost the machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import oomreaper
from oomreaper.errors import KernelError, UsageError
from oomreaper.model.outcome import OutcomeKind
from tests.interpreters import NOBODY, find_source_for_everybody
from tests.real.command import COMMAND, reap, reap_command
from tests.victims import stage
from tests.victims.processes import start_time_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE_BYTES = 16 * stage.MIB
SECCOMP = Path(__file__).parent.parent / "seccomp.py"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A small process of ours, in a session of its own."""
    process = subprocess.Popen(["sleep", "50"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


# -- what is no process id at all --------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["self", "", "12x", "1.5", "0x10", "\u0661\u0662", "9" * 30, "12:", "12:x", "--12"])
def test_what_is_no_number_is_a_usage_error(word: str) -> None:
    """Exit status 2 and one clear line; nothing was looked at."""
    run = reap(word)

    assert run.status == 2
    assert run.records == []
    assert "Traceback" not in run.errors
    assert "error:" in run.errors


@pytest.mark.parametrize(
    "arguments", [["--timeout", "0", "5"], ["--timeout", "-1", "5"], ["--timeout", "nan", "5"], []]
)
def test_other_usage_errors(arguments: list[str]) -> None:
    """A time that makes no sense, and no victim at all: exit status 2."""
    run = reap(*arguments)

    assert run.status == 2
    assert run.records == []


# -- whom nobody may kill ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (0, "own process group"),
        (1, "init"),
        (-5, "process group"),
        (4194305, "above 4194304"),
        (99999999999999999999, "above 4194304"),
    ],
)
def test_impossible_pids_are_refused(pid: int, reason: str) -> None:
    """0, 1, negative and huge: refused with the reason, exit status 1; no signal leaves the program."""
    run = reap("--dry-run", pid)

    assert run.record["outcome"] == "refused"
    assert reason in run.record["reason"]
    assert run.status == 1


def test_its_own_pid_and_its_ancestors_are_refused() -> None:
    """A program that kills itself, its parent, or whom that one descends from, would end in mid-work."""
    script = 'exec "$0" -m oomreaper reap --json --dry-run $$'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, check=False)

    assert "oomreaper itself" in done.stdout
    assert done.returncode == 1
    run = reap("--dry-run", os.getpid())
    assert "descends from it" in run.record["reason"]
    assert run.status == 1


def test_the_leader_of_its_own_group_is_refused() -> None:
    """Also when that leader is no ancestor of the command: the group would be taken along."""
    leader = subprocess.Popen(["sleep", "50"], process_group=0)
    try:
        done = subprocess.run(
            reap_command(leader.pid), capture_output=True, text=True, check=False, process_group=leader.pid
        )

        assert "process group of oomreaper" in done.stdout
        assert done.returncode == 1
        assert leader.poll() is None
    finally:
        leader.kill()
        leader.wait()


@pytest.mark.needs("kernel_threads")
def test_a_kernel_thread_is_refused() -> None:
    """kthreadd has no memory of its own and cannot be killed."""
    run = reap("--dry-run", 2)

    assert run.record["outcome"] == "refused"
    assert "kernel thread" in run.record["reason"]


@pytest.mark.needs("cc")
def test_a_thread_id_is_refused_and_the_process_named() -> None:
    """The id of a thread that leads no process: refused, with the pid to use instead."""
    with stage.many_threads(2, size_bytes=SIZE_BYTES) as victim:
        thread = victim.follower_ids()[0]
        run = reap(thread)

        assert run.record["outcome"] == "refused"
        assert f"oomreaper reap {victim.pid}" in run.record["reason"]
        assert not victim.is_gone(timeout_s=0.1)


# -- gone, recycled, not ours ------------------------------------------------------------------------------


def test_a_pid_that_has_gone() -> None:
    """gone, exit status 1."""
    process = subprocess.Popen(["true"])
    process.wait()
    run = reap(process.pid)

    assert run.record["outcome"] == "gone"
    assert run.status == 1


def test_a_zombie_has_gone_already() -> None:
    """A process that has ended and was not waited for: gone, and its parent is named."""
    process = subprocess.Popen(["true"])
    assert stage.wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z", timeout_s=5)
    run = reap(process.pid)
    process.wait()

    assert run.record["outcome"] == "gone"
    assert str(os.getpid()) in run.record["reason"]


def test_a_recycled_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """PID:START of a life that is over: gone; whoever holds the pid now lives on."""
    started = start_time_ticks(sleeper.pid)
    assert started is not None
    run = reap(f"{sleeper.pid}:{started - 1}")

    assert run.record["outcome"] == "gone"
    assert "recycled" in run.record["reason"]
    assert sleeper.poll() is None
    assert reap(f"{sleeper.pid}:{started}").status == 0


@pytest.mark.needs("root", "python_for_everybody")
def test_somebody_else_s_process_is_refused_without_permission(sleeper: subprocess.Popen[bytes]) -> None:
    """refused, exit status 3, and what would help."""
    run = reap(sleeper.pid, user=NOBODY)

    assert run.record["outcome"] == "refused"
    assert "ask as root" in run.record["reason"]
    assert run.status == 3
    assert sleeper.poll() is None


@pytest.mark.needs("cc", "root", "unshare")
def test_init_sharing_the_memory_is_refused() -> None:
    """A victim whose memory init shares: init is not killed, so nothing could be freed, so nobody is."""
    with stage.init_shares_memory(size_bytes=SIZE_BYTES) as victim:
        done = victim.run_inside([*COMMAND, "reap", "--json", str(victim.pid_inside)])

        assert '"outcome": "refused"' in done.stdout, done.stderr
        assert "init" in done.stdout
        assert done.returncode == 1
        assert not victim.is_gone(timeout_s=0.2)


# -- kernels and sandboxes that refuse ---------------------------------------------------------------------


def _under_filter(*denials: str) -> list[str]:
    return [sys.executable, str(SECCOMP), *(word for denial in denials for word in ("--deny", denial)), "--"]


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("verdict", ["ENOSYS", "EPERM", "kill"])
def test_without_process_mrelease_it_kills_and_says_so(sleeper: subprocess.Popen[bytes], verdict: str) -> None:
    """The call is missing, refused or deadly: the victim is killed without reaping, and each record says so."""
    run = reap(sleeper.pid, prefix=_under_filter(f"process_mrelease={verdict}"))

    assert run.record["outcome"] == "exited"
    assert "killed without reaping" in run.record["reason"]
    assert run.status == 0
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


@pytest.mark.needs("seccomp", "ptrace", "cc")
def test_without_process_mrelease_a_stuck_victim_is_not_supported_here() -> None:
    """Killed, stuck, and nothing to reap it with: unreapable, exit status 3 since another kernel would help."""
    with stage.parked_in_exit(size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid, prefix=_under_filter("process_mrelease=ENOSYS"))

        assert run.record["outcome"] == "unreapable"
        assert run.status == 3


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal"])
@pytest.mark.parametrize("verdict", ["ENOSYS", "EPERM", "kill"])
def test_without_pidfds_nothing_is_signalled(sleeper: subprocess.Popen[bytes], call: str, verdict: str) -> None:
    """No pidfd, no kill: exit status 3, a message that points to doctor, and the process lives on."""
    run = reap(sleeper.pid, prefix=_under_filter(f"{call}={verdict}"))

    assert run.status == 3
    assert "Traceback" not in run.errors
    assert "doctor" in run.errors + "".join(str(record["reason"]) for record in run.records)
    assert sleeper.poll() is None


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("verdict", ["ENOSYS", "EPERM"])
def test_without_kcmp_a_victim_without_sharers_is_reaped(sleeper: subprocess.Popen[bytes], verdict: str) -> None:
    """Sharers cannot be known then; a victim that has none is served as ever."""
    run = reap(sleeper.pid, prefix=_under_filter(f"kcmp={verdict}"))

    assert run.status == 0
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


def _in_mount_namespace(script: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + ' && exec "$@"', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": find_source_for_everybody()}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=50, env=environment, cwd="/")


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize(
    "script",
    ["mount -t tmpfs none /proc", "mount -t proc -o subset=pid none /proc"],
    ids=["no /proc", "subset=pid"],
)
def test_without_a_usable_proc_nothing_is_signalled(sleeper: subprocess.Popen[bytes], script: str) -> None:
    """No identity without /proc: exit status 3, with the command that mounts it; the process lives on."""
    done = _in_mount_namespace(script, reap_command(sleeper.pid))

    assert done.returncode == 3
    assert "mount -t proc" in done.stderr
    assert "Traceback" not in done.stderr
    assert sleeper.poll() is None


@pytest.mark.needs("root", "unshare")
def test_a_proc_of_another_pid_namespace_is_refused(sleeper: subprocess.Popen[bytes]) -> None:
    """There the numbers in /proc name other processes than the kernel would signal for us."""
    words = ["unshare", "--pid", "--fork", *reap_command(sleeper.pid)]
    environment = {**os.environ, "PYTHONPATH": find_source_for_everybody()}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=50, env=environment, cwd="/")

    assert done.returncode == 3
    assert "another pid namespace" in done.stderr
    assert sleeper.poll() is None


@pytest.mark.needs("root", "unshare", "python_for_everybody")
def test_a_process_hidden_by_hidepid_is_refused(sleeper: subprocess.Popen[bytes]) -> None:
    """It exists and cannot be looked at: refused, exit status 3, and hidepid is named."""
    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        *reap_command(sleeper.pid, user=NOBODY),
    ]
    done = _in_mount_namespace("mount -t proc -o hidepid=2 none /proc", command)

    assert '"outcome": "refused"' in done.stdout, done.stderr
    assert "hidepid" in done.stdout
    assert done.returncode == 3
    assert sleeper.poll() is None


# -- hostile names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"foo) Z ", b"a\nb", b"\x1b[31mred", b"\xff\xfe", b"\xe2\x80\xaeright", b"()"])
def test_hostile_names_do_no_harm(name: bytes) -> None:
    """A comm may hold anything: the victim is found and reaped, and the name is shown escaped."""
    script = f"import ctypes, time; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); print(flush=True); time.sleep(50)"
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert victim.stdout is not None
        victim.stdout.readline()
        run = reap(victim.pid)

        assert run.status == 0
        assert run.record["comm"].isprintable()
        plain = subprocess.run([*COMMAND, "reap", "--dry-run", str(os.getpid())], capture_output=True, check=False)
        assert b"\x1b" not in plain.stdout
    finally:
        victim.kill()
        victim.wait()
        if victim.stdout is not None:
            victim.stdout.close()


# -- the library call --------------------------------------------------------------------------------------


def test_the_library_reaps_also_from_a_program_with_threads(sleeper: subprocess.Popen[bytes]) -> None:
    """oomreaper.reap() forks nothing of the caller's: it may have threads, and warnings may be errors."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        outcome = oomreaper.reap(sleeper.pid, start_time_ticks=start_time_ticks(sleeper.pid))
    finally:
        stop.set()
        thread.join()

    assert outcome.kind in (OutcomeKind.REAPED, OutcomeKind.EXITED)
    assert outcome.comm == b"sleep"
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


def test_the_library_refuses_its_own_caller() -> None:
    """reap(os.getpid()) comes back as refused."""
    outcome = oomreaper.reap(os.getpid())

    assert outcome.kind is OutcomeKind.REFUSED


def test_the_library_names_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong coredump or time-out is the caller's mistake; no interpreter is the machine's."""
    with pytest.raises(UsageError, match="abort, wait"):
        oomreaper.reap(500, coredump="maybe")
    with pytest.raises(UsageError, match="above 0"):
        oomreaper.reap(500, timeout_seconds=0)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(KernelError, match="interpreter"):
        oomreaper.reap(500)
