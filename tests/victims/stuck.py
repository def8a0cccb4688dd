"""Victims that SIGKILL alone does not free: each holds its memory until what holds *it* is released."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.victims.healthy import MemoryKind, plain
from tests.victims.processes import children_of, cpu_ticks, kill_exactly, start_time_ticks, wait_until
from tests.victims.program import (
    READY_TIMEOUT_S,
    StageError,
    compiled_program,
    fresh_name,
    holder,
    killed_at_the_end,
    run_directory,
)
from tests.victims.staged import DEFAULT_SIZE_BYTES, NamespacedVictim, StagedVictim, on_stage, victim
from tests.victims.surroundings import (
    CoreDam,
    FrozenFilesystem,
    core_pattern,
    frozen_filesystem,
    kept_off,
    last_cpu,
    own_cgroup,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Four busy loops of nice -20 leave a SCHED_IDLE task a tick of 4 ms every ten minutes or so. At nice 0 it gets one
# within a second, which is enough to free 50 MiB (measured on Linux 6.18, HZ=250).
_BUSY_LOOPS = 4
_BUSY_BOUND_S = 50
# A real-time loop starves the kernel's own threads of that CPU as well: seconds, no more.
_FIFO_BOUND_S = 6
# A grant is 50 ms, 5 ticks of the CPU clock as /proc shows it. The first can be cut short, and a tick from before
# the loop can show late: neither is taken for a whole one.
_FIFO_GRANT_TICKS = 3
# Two seconds hold a whole grant; none comes at all where an administrator has turned them off.
_FIFO_GRANT_TIMEOUT_S = 2.2
# That long without a tick of 10 ms, and the grant is over.
_FIFO_QUIET_S = 0.03


@contextlib.contextmanager
def inode_lock(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """D in write(), for an inode's lock that another process holds and does not let go: the founding commit's case."""
    with (
        holder("hold-inode-lock") as owner,
        victim("stuck-write", size_bytes=size_bytes, path=f"/proc/{owner.pid}/fd/{owner.facts['file']}") as staged,
    ):
        staged.on_release(owner.end)
        staged.wait_for_state("D")
        yield staged


@contextlib.contextmanager
def zombie_leader_stuck(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """The first thread has left, the second stands in D for an inode's lock."""
    with (
        holder("hold-inode-lock") as owner,
        victim("zombie-leader", size_bytes=size_bytes, path=f"/proc/{owner.pid}/fd/{owner.facts['file']}") as staged,
    ):
        staged.on_release(owner.end)
        staged.wait_for_state("D")
        staged.wait_for_state("Z")
        yield staged


@contextlib.contextmanager
def fuse_read(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """In read() of a FUSE file whose server has the request and does not answer: S, and D once it is killed."""
    directory = run_directory() / fresh_name()
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(directory.rmdir)
        server = stack.enter_context(holder("serve-fuse", path=directory))
        staged = stack.enter_context(
            victim("stuck-read", size_bytes=size_bytes, path=directory / "file", mounts_of=server.pid)
        )

        def answer() -> None:
            server.order()
            server.expect("answered")

        staged.on_release(answer)
        server.expect("reading")
        staged.wait_for_state("S")
        yield staged


@contextlib.contextmanager
def frozen_write(
    *, size_bytes: int = DEFAULT_SIZE_BYTES, filesystem: FrozenFilesystem | None = None
) -> Iterator[StagedVictim]:
    """D in write() to a frozen file system: its own, or the one given, which ``release`` then thaws for all on it."""
    with contextlib.ExitStack() as stack:
        frozen = filesystem or stack.enter_context(frozen_filesystem())
        staged = stack.enter_context(
            victim("stuck-write", size_bytes=size_bytes, path=frozen.file, mounts_of=frozen.pid)
        )
        staged.on_release(frozen.thaw)
        staged.wait_for_state("D")
        yield staged


@contextlib.contextmanager
def mmap_lock_held(
    count: int = 1, *, size_bytes: int = DEFAULT_SIZE_BYTES, filesystem: FrozenFilesystem | None = None
) -> Iterator[tuple[StagedVictim, ...]]:
    """Victims in which a thread in D holds mmap_lock for write, so that process_mrelease blocks on each.

    They stand on one frozen file system: a new one, or the one given. The release of any is the release of all.
    """
    with contextlib.ExitStack() as stack:
        frozen = filesystem or stack.enter_context(frozen_filesystem())
        victims = []
        for _ in range(count):
            staged = stack.enter_context(
                victim("hold-mmap-lock", size_bytes=size_bytes, path=frozen.file, mounts_of=frozen.pid)
            )
            staged.on_release(frozen.thaw)
            staged.wait_for_state("D")
            victims.append(staged)
        yield tuple(victims)


@contextlib.contextmanager
def frozen_cgroup_v1(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """In a v1 freezer group that is FROZEN: it cannot even take SIGKILL."""
    with (
        own_cgroup("freezer", ("freezer.state", "THAWED")) as group,
        victim("idle", size_bytes=size_bytes, cgroup=group) as staged,
    ):
        staged.wait_for_state("S")
        state = group / "freezer.state"
        staged.on_release(lambda: state.write_text("THAWED"))
        state.write_text("FROZEN")
        if not wait_until(lambda: state.read_text() == "FROZEN\n", READY_TIMEOUT_S):
            message = f"{group} does not freeze"
            raise StageError(message)
        yield staged


@contextlib.contextmanager
def frozen_cgroup_v2(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """In a frozen v2 group, which unlike v1 lets SIGKILL through: as good as healthy."""
    with (
        own_cgroup(None, ("cgroup.freeze", "0")) as group,
        victim("idle", size_bytes=size_bytes, cgroup=group) as staged,
    ):
        staged.wait_for_state("S")
        staged.on_release(lambda: (group / "cgroup.freeze").write_text("0"))
        (group / "cgroup.freeze").write_text("1")
        if not wait_until(lambda: "frozen 1" in (group / "cgroup.events").read_text(), READY_TIMEOUT_S):
            message = f"{group} does not freeze"
            raise StageError(message)
        yield staged


@contextlib.contextmanager
def _starved(*, size_bytes: int, policy: str, loops: int, loops_policy: str, bound_s: int) -> Iterator[StagedVictim]:
    cpu = last_cpu()
    with (
        kept_off(cpu),
        victim(
            "starved",
            size_bytes=size_bytes,
            cpu=cpu,
            policy=policy,
            count=loops,
            loops_policy=loops_policy,
            loops_bound=bound_s,
        ) as staged,
    ):
        loops_pid = int(staged.helper.facts["loops"])
        loops_start_time = start_time_ticks(loops_pid)
        staged.on_release(staged.helper.order)
        staged.on_release(lambda: kill_exactly(loops_pid, loops_start_time))
        staged.helper.expect("burning")
        yield staged


@contextlib.contextmanager
def starved_by_busy_loops(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """SCHED_IDLE, runnable, and bound to a CPU that busy loops of high priority keep: it hardly runs, hardly dies."""
    with _starved(
        size_bytes=size_bytes, policy="idle", loops=_BUSY_LOOPS, loops_policy="eager", bound_s=_BUSY_BOUND_S
    ) as staged:
        yield staged


@contextlib.contextmanager
def starved_by_fifo(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """Runnable, and bound to a CPU that a SCHED_FIFO loop keeps, for 0.9 s from the start of the block.

    The kernel grants normal tasks 50 ms of every second all the same (real-time throttling, the fair server since
    6.12): the block starts when such a moment has just passed. After the next one a killed victim is dead.
    """
    with _starved(size_bytes=size_bytes, policy="other", loops=1, loops_policy="fifo", bound_s=_FIFO_BOUND_S) as staged:
        _wait_for_the_end_of_a_grant(staged.pid)
        yield staged


def _wait_for_the_end_of_a_grant(pid: int) -> None:
    """Wait until a busy process that is starved has had its moment on the CPU, and has lost it again."""
    start_ticks = last_ticks = cpu_ticks(pid)
    quiet_since_s = start_s = time.monotonic()

    def is_over() -> bool:
        nonlocal last_ticks, quiet_since_s
        now_s, now_ticks = time.monotonic(), cpu_ticks(pid)
        if now_ticks != last_ticks:
            last_ticks, quiet_since_s = now_ticks, now_s
        has_run = now_ticks - start_ticks >= _FIFO_GRANT_TICKS or now_s - start_s > _FIFO_GRANT_TIMEOUT_S
        return has_run and now_s - quiet_since_s > _FIFO_QUIET_S

    wait_until(is_over, _FIFO_BOUND_S)


@contextlib.contextmanager
def parked_in_exit(
    memory: MemoryKind = "anon",
    *,
    sharers: int = 0,
    user: int | None = None,
    size_bytes: int = DEFAULT_SIZE_BYTES,
) -> Iterator[StagedVictim]:
    """Traced so that it stops at the start of its exit, before it drops its memory. Needs no privilege.

    With ``sharers``, other processes live in the same address space, which are not traced: as long as one of them
    is not dying, process_mrelease says EINVAL.
    """
    with (
        plain(memory, sharers=sharers, user=user, size_bytes=size_bytes) as staged,
        holder("trace-exit", staged.pid, user=user) as tracer,
    ):
        staged.on_release(tracer.end)
        yield staged


@contextlib.contextmanager
def core_dump_to_pipe(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """Dumping core into a pipe that nobody reads until ``release``; SIGKILL aborts such a dump."""
    with contextlib.ExitStack() as stack:
        staged = stack.enter_context(victim("dump-core", size_bytes=size_bytes))
        dam = stack.enter_context(CoreDam())
        staged.on_release(dam.open)
        with core_pattern(f"|{compiled_program()} swallow-core {dam.operands}") as restore:
            staged.helper.order()
            dam.wait_for_the_kernels_helper()
            restore()
        _must_dump_core(staged)
        # The pipe is full when it sleeps.
        staged.wait_for_state("S")
        yield staged


@contextlib.contextmanager
def core_dump_to_frozen_filesystem(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """Dumping core to a file that the frozen file system does not let it open: in D, so SIGKILL aborts nothing."""
    with (
        frozen_filesystem() as frozen,
        victim("dump-core", size_bytes=size_bytes, path=frozen.directory, mounts_of=frozen.pid) as staged,
    ):
        staged.on_release(frozen.thaw)
        with core_pattern("oomreaper-test-core") as restore:
            staged.helper.order()
            staged.wait_for_state("D")
            restore()
        _must_dump_core(staged)
        yield staged


def _must_dump_core(staged: StagedVictim) -> None:
    if not wait_until(staged.is_dumping_core, READY_TIMEOUT_S):
        message = f"pid {staged.pid} does not dump core: {staged.states()}"
        raise StageError(message)


@contextlib.contextmanager
def pinned_by_remote_read(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """Another process sleeps in a process_vm_readv of it, which keeps its memory whole beyond its death.

    It has a v1 memory cgroup of its own (``memcg_usage_bytes``), since nothing else still shows that memory then.
    """
    with (
        own_cgroup("memory") as group,
        victim("pin-target", size_bytes=size_bytes, cgroup=group) as staged,
    ):
        staged.memory_cgroup = Path(group)
        facts = staged.helper.facts
        with holder("pin-remotely", staged.pid, facts["address"], facts["uffd"]) as reader:
            staged.on_release(reader.end)
            staged.wait_for_state("S")
            yield staged


@contextlib.contextmanager
def init_shares_memory(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[NamespacedVictim]:
    """In a pid namespace whose pid 1 shares its memory and cannot be killed from inside; ``release`` kills it."""
    with killed_at_the_end("init-shares", size=size_bytes) as helper:
        init_pid = int(helper.expect("init")["pid"])
        helper.become_ready()
        (pid,) = children_of(init_pid)
        staged = NamespacedVictim(helper, size_bytes=size_bytes, pid=pid, init_pid=init_pid)
        staged.on_release(staged.kill_init)
        with on_stage(staged):
            staged.wait_for_state("S")
            yield staged
