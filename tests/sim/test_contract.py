"""The model answers as this machine's kernel does: the same script on both, operation by operation.

Scripts are those of KERNEL.md's table of errnos and of its victims that can be built here. What the two are known to
answer differently is ``DIFFERENCES``, which docs/simulation.md lists; a difference that is none any more is a failure,
too.
"""

from __future__ import annotations

import errno
import functools
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from oomreaper.linux import syscalls
from oomreaper.sim.choice import Seeded
from oomreaper.sim.linux.bind import bound
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.programs import idle
from oomreaper.sim.userland import Userland
from tests.sim import contract_stage
from tests.sim.contract import SIZE_MIB, Answer, RealSubject, SimSubject, name_errno, run_script
from tests.victims import stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.victims.stage import StagedVictim

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/simulation.md"
SEEDS = range(5)
# A stuck victim: SIGKILL alone leaves its memory, mrelease gets it while it is stuck, and again is nothing; released it
# goes, a zombie has no memory to reap, and whoever was waited for is nobody.
STUCK = (
    "letters anon mrelease anon kill held letters ended anon mrelease anon letters mrelease anon release gone ended "
    "mrelease kill collect mrelease kill"
)
# One that dies of SIGKILL.
HEALTHY = "letters ended anon mrelease anon kill gone ended anon mrelease collect mrelease kill"


class Case(NamedTuple):
    """One victim: its name on either stage, what is asked of it, and what the machine must have for it."""

    name: str
    real: Callable[[], AbstractContextManager[StagedVictim]]
    script: str
    needs: tuple[str, ...] = ()


CASES = (
    Case("plain", stage.plain, HEALTHY),
    Case("many_threads", functools.partial(stage.many_threads, 200), HEALTHY),
    Case("zombie_leader", stage.zombie_leader, HEALTHY),
    Case(
        "sharers",
        functools.partial(stage.plain, sharers=1),
        "letters anon mrelease kill held ended anon mrelease kill_all gone anon mrelease",
        ("kcmp",),
    ),
    Case(
        "vfork_parent",
        stage.vfork_parent,
        "letters anon mrelease kill held ended anon mrelease release gone anon mrelease",
        ("kcmp",),
    ),
    Case("inode_lock", stage.inode_lock, STUCK, ("userfaultfd",)),
    Case("zombie_leader_stuck", stage.zombie_leader_stuck, STUCK, ("userfaultfd",)),
    Case("fuse_read", stage.fuse_read, STUCK, ("root", "fuse", "unshare")),
    Case("frozen_write", stage.frozen_write, STUCK, ("root", "loop_ext4", "unshare")),
    Case("frozen_cgroup_v1", stage.frozen_cgroup_v1, STUCK, ("cgroup_v1_freezer",)),
    Case("starved_by_busy_loops", stage.starved_by_busy_loops, STUCK, ("two_cpus", "negative_nice")),
    Case("parked_in_exit", stage.parked_in_exit, STUCK, ("ptrace",)),
    Case(
        "parked_locked",
        functools.partial(stage.parked_in_exit, "locked"),
        "anon kill held letters mrelease anon release gone",
        ("ptrace", "mlock"),
    ),
    Case(
        "parked_shared",
        functools.partial(stage.parked_in_exit, "shared"),
        "anon shmem kill held mrelease shmem mrelease shmem release gone shmem",
        ("ptrace",),
    ),
    Case(
        "parked_sharers",
        functools.partial(stage.parked_in_exit, sharers=1),
        "kill held letters mrelease anon kill_all held mrelease anon letters release gone mrelease",
        ("ptrace",),
    ),
    Case(
        "core_dump_to_pipe",
        stage.core_dump_to_pipe,
        "letters dumping anon mrelease held anon kill gone anon mrelease",
        ("root", "core_pattern"),
    ),
    Case(
        "core_dump_to_frozen_filesystem",
        stage.core_dump_to_frozen_filesystem,
        "letters dumping anon mrelease kill held dumping letters mrelease anon release gone anon mrelease",
        ("root", "core_pattern", "loop_ext4", "unshare"),
    ),
    Case(
        "mmap_lock_held",
        lambda: _first_of(stage.mmap_lock_held()),
        "anon kill held letters mrelease anon mrelease letters anon release gone anon mrelease",
        ("root", "loop_ext4", "unshare"),
    ),
    Case(
        "pinned_by_remote_read",
        stage.pinned_by_remote_read,
        "letters charge kill gone ended anon charge mrelease collect charge mrelease release charge",
        ("root", "userfaultfd", "cgroup_v1_memory"),
    ),
)
# By victim and operation (its number in the script): what the kernel says and what the model says.
DIFFERENCES: dict[tuple[str, int], tuple[str, str]] = {}
# What no script can compare, and why; by words that stand so in docs/simulation.md.
NOT_COMPARED = (
    "EAGAIN",
    "EINTR",
    "ENOSYS",
    "EPERM",
    "PIDFD_THREAD",
    "starved_by_fifo",
    "frozen_cgroup_v2",
    "init_shares_memory",
)


def _first_of(held: AbstractContextManager[tuple[StagedVictim, ...]]) -> AbstractContextManager[StagedVictim]:
    stack = ExitStack()

    class _First:
        def __enter__(self) -> StagedVictim:
            return stack.enter_context(held)[0]

        def __exit__(self, *failure: object) -> None:
            stack.close()

    return _First()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.needs("cc", "process_mrelease", *case.needs))
        for case in CASES
    ],
)
def test_the_model_answers_as_the_kernel_does(case: Case) -> None:
    """Errnos, states, memory: the same after each operation, for every seed; but for what is known to differ."""
    script = case.script.split()
    with case.real() as victim:
        real = run_script(RealSubject(victim), script)
    known = {number: pair for (name, number), pair in DIFFERENCES.items() if name == case.name}
    expected = [
        Answer(answer.operation, known[number][1]) if number in known else answer for number, answer in enumerate(real)
    ]

    for number, (kernel, _) in known.items():
        assert real[number].answer == kernel, f"difference {number} of {case.name} is none any more"
    for seed in SEEDS:
        modelled = contract_stage.stage_on(getattr(contract_stage, case.name), seed)
        assert expected == run_script(modelled, script), f"seed {seed}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_model_answers_the_same_under_every_schedule(case: Case) -> None:
    """The answers are the victim's and not the schedule's: 30 seeds say the same."""
    script = case.script.split()
    staging = getattr(contract_stage, case.name)

    answers = {tuple(run_script(contract_stage.stage_on(staging, seed), script)) for seed in range(30)}
    assert len(answers) == 1


@pytest.mark.needs("kernel_threads", "process_mrelease")
def test_a_kernel_thread_has_nothing_to_reap() -> None:
    """ESRCH from both for kthreadd: it has no address space; nobody is signalled."""
    with pytest.raises(OSError, match=r"\[Errno") as raised:
        syscalls.process_mrelease(syscalls.pidfd_open(2))

    assert (raised.value.errno, "ESRCH") == (errno.ESRCH, _modelled_kernel_thread())


def test_a_modelled_kernel_thread_has_nothing_to_reap() -> None:
    """The model's half of the above, for machines whose kernel threads cannot be seen."""
    assert _modelled_kernel_thread() == "ESRCH"


def _modelled_kernel_thread() -> str:
    machine = Machine(Seeded(0))
    return SimSubject(machine, machine.kthreadd).mrelease()


def test_a_blocking_notifier_is_eagain_and_the_rest_is_reaped() -> None:
    """EAGAIN (no device here has such a notifier): the other areas are gone, the next call says it again."""
    machine = Machine(Seeded(0))
    blocked = Area(Kind.ANONYMOUS, "of a guest")
    blocked.notifier_blocks = True
    free = Area(Kind.ANONYMOUS, "other")
    half_mib = SIZE_MIB / 2
    victim = machine.add_process("victim", (idle(),), areas=((blocked, half_mib), (free, half_mib)))
    subject = contract_stage.park(machine, victim)

    answers = run_script(subject, ["kill", "mrelease", "anon", "mrelease", "anon"])
    assert [answer.answer for answer in answers] == ["0", "EAGAIN", "part", "EAGAIN", "part"]
    assert (free.resident, blocked.resident) == (0, machine.parameters.pages(half_mib))


def _ask_calls(calls: Any, idle_pid: int, follower: int, dead_pid: int) -> dict[str, set[int]]:
    """What the calls themselves say, where no victim is needed: what was asked, and the errno, 0 for none."""

    def errno_of(call: Callable[..., object], *values: object) -> set[int]:
        try:
            call(*values)
        except OSError as error:
            return {error.errno or 0}
        return {0}

    handle = calls.pidfd_open(idle_pid)
    return {
        "mrelease of no descriptor": errno_of(calls.process_mrelease, -1),
        "signal 0 through no descriptor": errno_of(calls.pidfd_send_signal, -1, 0),
        "signal 0": errno_of(calls.pidfd_send_signal, handle, 0),
        "mrelease of who lives": errno_of(calls.process_mrelease, handle),
        "pidfd of a follower": errno_of(calls.pidfd_open, follower),
        "pidfd of nobody": errno_of(calls.pidfd_open, dead_pid),
        "kcmp with itself": errno_of(calls.is_same_mm, idle_pid, idle_pid),
        "kcmp with nobody": errno_of(calls.is_same_mm, idle_pid, dead_pid),
    }


@pytest.mark.needs("cc", "process_mrelease", "kcmp")
def test_the_calls_answer_as_the_kernel_s_do() -> None:
    """EBADF, ESRCH and the like of the calls that our code makes: the model's face to user space says the same."""
    with stage.many_threads(1) as victim, stage.plain() as dead:
        dead.kill()
        assert dead.is_gone(10.0)
        dead.collect()
        real = _ask_calls(syscalls, victim.pid, victim.follower_ids()[0], dead.pid)
    machine = Machine(Seeded(0))
    process = machine.add_process("victim", (idle(), idle()))
    (tid,) = (thread.tid for thread in process.threads if thread.tid != process.pid)
    answers: list[dict[str, set[int]]] = []
    userland = Userland(machine)
    with bound(userland) as calls:
        userland.add("asker", lambda: answers.append(_ask_calls(calls.syscalls, process.pid, tid, 99_999)))
        machine.engine.run(max_steps=1_000)

    assert real["pidfd of a follower"] <= {errno.EINVAL, errno.ENOENT}  # EINVAL before Linux 6.18
    real["pidfd of a follower"] = answers[0]["pidfd of a follower"]
    assert real == answers[0]
    assert real["mrelease of no descriptor"] == {errno.EBADF}


def test_every_errno_of_the_table_is_asked_or_excused() -> None:
    """KERNEL.md's table: each errno comes out of a script above, or stands among what cannot be compared."""
    table = {"0", "EINVAL", "ESRCH", "EAGAIN", "EINTR", "EBADF", "ENOSYS", "EPERM"}
    answers = {
        answer.answer
        for case in CASES
        for answer in run_script(contract_stage.stage_on(getattr(contract_stage, case.name), 0), case.script.split())
        if answer.operation == "mrelease"
    }

    assert {"0", "EINVAL", "ESRCH", name_errno(None)} == answers
    assert table - answers - set(NOT_COMPARED) == {"EBADF"}  # test_the_calls_answer_as_the_kernel_s_do


def test_the_page_lists_what_differs() -> None:
    """docs/simulation.md names each victim whose answers differ, and each row that cannot be compared."""
    page = PAGE.read_text(encoding="utf-8")
    section = page[page.index("## Where it differs") :]

    for words in (*NOT_COMPARED, *(name for name, _ in DIFFERENCES)):
        assert re.search(rf"\b{words}\b", section), words
