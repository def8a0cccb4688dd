"""What this process may do: capabilities, resource limits, seccomp, namespaces.

Read from /proc/self of the prober, which has the rights that a reaping process will have. Nothing that can be
asked is concluded from here. A capability held in a user namespace counts for some things and not for others:
for a PSI window it does, for real-time priority and locked memory it does not (Linux 6.18).
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.linux.features.tree import format_kib
from oomreaper.model.features import Feature, FeatureState

if TYPE_CHECKING:
    from oomreaper.linux.features.interview import Interview
    from oomreaper.linux.features.tree import Tree

CAP_KILL = "CAP_KILL"
CAP_IPC_LOCK = "CAP_IPC_LOCK"
CAP_SYS_PTRACE = "CAP_SYS_PTRACE"
CAP_SYS_ADMIN = "CAP_SYS_ADMIN"
CAP_SYS_NICE = "CAP_SYS_NICE"
CAP_SYS_RESOURCE = "CAP_SYS_RESOURCE"

# include/uapi/linux/capability.h
_BITS = {
    CAP_KILL: 5,
    CAP_IPC_LOCK: 14,
    CAP_SYS_PTRACE: 19,
    CAP_SYS_ADMIN: 21,
    CAP_SYS_NICE: 23,
    CAP_SYS_RESOURCE: 24,
}
# What is lost without each, in the order in which it hurts.
_LOST_WITHOUT = {
    CAP_KILL: "other users' processes cannot be killed",
    CAP_SYS_PTRACE: "who shares their memory stays unknown",
    CAP_SYS_NICE: "no real-time priority",
    CAP_IPC_LOCK: "memory is locked up to RLIMIT_MEMLOCK only",
    CAP_SYS_RESOURCE: "oom_score_adj cannot be lowered",
}

# The kernel's RLIM_INFINITY.
UNLIMITED = 2**64 - 1
# Descriptors that a watcher holds: some of its own, and each process's pidfd and stat.
_DESCRIPTORS_OF_OUR_OWN = 256
_DESCRIPTORS_PER_PROCESS = 2

# The inode numbers of the first namespaces (the kernel's *_INIT_INO), which no later one has.
_FIRST_NAMESPACES = {
    "user": "user:[4026531837]",
    "pid": "pid:[4026531836]",
    "cgroup": "cgroup:[4026531835]",
}
_LOST_INSIDE = {
    "user": "capabilities count only inside: even root may be refused real-time priority and locked memory",
    "pid": "processes outside are neither seen nor killed",
    "cgroup": "cgroups outside are not seen",
}

# The kernel asks no right for these in the way the prober calls them, so a refusal is a sandbox's.
_CALLS_WITHOUT_RIGHTS = ("process_mrelease", "pidfd_open", "pidfd_send_signal", "kcmp")
# The prober's questions, and the call that a filter has to permit for each.
_CALLS_BY_QUESTION = {
    **{call: call for call in _CALLS_WITHOUT_RIGHTS},
    "sched_fifo": "sched_setscheduler",
    "mlockall": "mlockall",
}


class Standing(NamedTuple):
    """The rights of this process, from /proc/self/status; None where that does not tell.

    ``effective`` and ``bounding`` are sets of capabilities, a bit each. ``pid_levels`` counts the pid
    namespaces in which /proc shows this process: one, unless that /proc belongs to an outer namespace.
    ``is_user_namespaced`` says that the capabilities are those of a user namespace other than the first.
    """

    effective: int | None
    bounding: int | None
    seccomp_mode: int | None
    seccomp_filters: int | None
    has_no_new_privs: bool | None
    pid_levels: int | None
    group_ids: frozenset[int]
    is_user_namespaced: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether a seccomp filter stands between this process and the kernel."""
        return bool(self.seccomp_mode)

    def has(self, capability: str) -> bool:
        """Whether the capability is in force."""
        return bool((self.effective or 0) >> _BITS[capability] & 1)

    def has_for_machine(self, capability: str) -> bool:
        """Whether the capability is in force where only those of the first user namespace count."""
        return self.has(capability) and not self.is_user_namespaced

    def is_barred(self, capability: str) -> bool:
        """Whether whoever started us left it out, so that not even root can have it here."""
        return self.bounding is not None and not self.bounding >> _BITS[capability] & 1

    def tell_how_to_get(self, *capabilities: str) -> str:
        """Tell what to do to have these capabilities."""
        barred = [capability for capability in capabilities if self.is_barred(capability)]
        granted = [capability for capability in capabilities if capability not in barred]
        remedies = []
        if granted:
            remedies.append(f"run as root, or in the unit: AmbientCapabilities={' '.join(granted)}")
        if barred:
            added = " ".join(f"--cap-add={capability.removeprefix('CAP_')}" for capability in barred)
            remedies.append(f"in the unit: CapabilityBoundingSet={' '.join(barred)}; docker run {added}")
        return "; ".join(remedies)


class Limit(NamedTuple):
    """One resource limit, soft and hard, in the kernel's unit; ``UNLIMITED`` for none."""

    soft: int
    hard: int


class Limits(NamedTuple):
    """The limits that a reaper runs into, from /proc/self/limits; None where that does not tell."""

    memlock_bytes: Limit | None
    rtprio: Limit | None
    nofile: Limit | None


def read_standing(tree: Tree, status: bytes) -> Standing:
    """Read the rights that ``status`` tells of; without it those of the calling process."""
    standing = parse_standing(status or tree.read_proc("self/status") or b"")
    return standing._replace(is_user_namespaced=_is_inside(tree, "user"))


def parse_standing(status: bytes) -> Standing:
    """Parse /proc/PID/status. The Name line is escaped by the kernel, so lines are lines."""
    fields = dict(line.partition(b":\t")[::2] for line in status.split(b"\n"))

    def number_of(name: bytes, base: int = 10) -> int | None:
        return int(fields[name], base) if name in fields else None

    no_new_privs = number_of(b"NoNewPrivs")
    group_ids = fields.get(b"Groups", b"").split() + fields.get(b"Gid", b"").split()
    return Standing(
        effective=number_of(b"CapEff", 16),
        bounding=number_of(b"CapBnd", 16),
        seccomp_mode=number_of(b"Seccomp"),
        seccomp_filters=number_of(b"Seccomp_filters"),  # Linux 5.9
        has_no_new_privs=None if no_new_privs is None else bool(no_new_privs),
        pid_levels=len(fields[b"NSpid"].split()) if b"NSpid" in fields else None,
        group_ids=frozenset(map(int, group_ids)),
    )


def read_limits(tree: Tree) -> Limits:
    """Read the limits of this process, which a process that it starts inherits."""
    content = tree.read_proc("self/limits") or b""
    return Limits(
        memlock_bytes=parse_limit(content, b"Max locked memory"),
        rtprio=parse_limit(content, b"Max realtime priority"),
        nofile=parse_limit(content, b"Max open files"),
    )


def parse_limit(limits: bytes, name: bytes) -> Limit | None:
    """One line of /proc/PID/limits, such as ``b"Max open files"``; None when it is not there."""
    for line in limits.split(b"\n"):
        if line.startswith(name):
            soft, hard = (UNLIMITED if word == b"unlimited" else int(word) for word in line[len(name) :].split()[:2])
            return Limit(soft, hard)
    return None


def describe_capabilities(standing: Standing) -> Feature:
    """Judge those that matter to a reap. CAP_SYS_ADMIN only adds kernel stacks to reports: not asked for."""
    name = "capabilities"
    if standing.effective is None:
        return Feature(name, FeatureState.MISSING, "not known: /proc/self/status cannot be read")
    absent = [capability for capability in _LOST_WITHOUT if not standing.has(capability)]
    if not absent:
        has_stacks = standing.has(CAP_SYS_ADMIN)
        found = "all that matter" if has_stacks else "all but SYS_ADMIN (kernel stacks in reports)"
        return Feature(name, FeatureState.AVAILABLE, found)
    names = ", ".join(capability.removeprefix("CAP_") for capability in absent)
    return Feature(
        name,
        FeatureState.LIMITED,
        "none of those that matter" if len(absent) == len(_LOST_WITHOUT) else f"all but {names}",
        lost="; ".join(_LOST_WITHOUT[capability] for capability in absent),
        remedy=standing.tell_how_to_get(*absent),
    )


def describe_rlimits(tree: Tree, limits: Limits) -> Feature:
    """Judge the limits. What RLIMIT_MEMLOCK and RLIMIT_RTPRIO cost is said at mlockall and sched_fifo."""
    name = "rlimits"
    if limits.nofile is None:
        return Feature(name, FeatureState.MISSING, "not known: /proc/self/limits cannot be read")
    found = ", ".join(
        (
            f"memlock {_format_limit(limits.memlock_bytes, is_bytes=True)}",
            f"rtprio {_format_limit(limits.rtprio)}",
            f"nofile {_format_limit(limits.nofile)}",
        )
    )
    processes = _count_processes(tree)
    wanted = _DESCRIPTORS_OF_OUR_OWN + _DESCRIPTORS_PER_PROCESS * processes
    if limits.nofile.hard >= wanted:  # the watcher raises its soft limit itself
        return Feature(name, FeatureState.AVAILABLE, found)
    return Feature(
        name,
        FeatureState.LIMITED,
        found,
        lost=f"{processes} processes want {wanted} descriptors: some are looked up afresh at every scan",
        remedy="in the unit: LimitNOFILE=524288; in a shell, as root: ulimit -n 524288",
    )


def describe_seccomp(interview: Interview, standing: Standing) -> Feature:
    """Judge whether a filter stands in the way; one that permits what a reap needs is none of our business."""
    refused = [
        call
        for question, call in _CALLS_BY_QUESTION.items()
        if (answer := interview.answer_to(question)).signal_number == signal.SIGSYS
        or (standing.is_filtered and answer.is_refused and call in _CALLS_WITHOUT_RIGHTS)
    ]
    suspected = [
        call
        for call in _CALLS_WITHOUT_RIGHTS
        if standing.is_filtered and interview.answer_to(call).number == errno.ENOSYS
    ]
    calls = " ".join(dict.fromkeys((*_CALLS_WITHOUT_RIGHTS, *refused)))
    remedy = f"in the unit: SystemCallFilter={calls}; in a container: a seccomp profile that has them"
    if refused:
        found = f"a filter stops {', '.join(refused)}"
        return Feature("seccomp", FeatureState.FORBIDDEN, found, lost="what these calls are for", remedy=remedy)
    if suspected:
        found = f"a filter may have stopped {', '.join(suspected)}"
        lost = "what these calls are for, unless it is the kernel that lacks them"
        return Feature("seccomp", FeatureState.LIMITED, found, lost=lost, remedy=remedy)
    if standing.seccomp_mode is None:
        return Feature("seccomp", FeatureState.AVAILABLE, "not told: no CONFIG_SECCOMP, or no /proc")
    found = "no filter"
    if standing.is_filtered:
        found = "filters: " + ("some" if standing.seccomp_filters is None else str(standing.seccomp_filters))
        found += ", none in our way" if interview.answers else ""
    return Feature("seccomp", FeatureState.AVAILABLE, found + (", no_new_privs" if standing.has_no_new_privs else ""))


def describe_namespaces(tree: Tree) -> Feature:
    """Whether we are in a container, and so see and rule only a part of the machine."""
    name = "namespaces"
    inside = [kind for kind in _FIRST_NAMESPACES if _is_inside(tree, kind)]
    if not inside:
        return Feature(name, FeatureState.AVAILABLE, "the first ones: the whole machine")
    return Feature(
        name,
        FeatureState.LIMITED,
        f"inside others: {', '.join(inside)}",
        lost="; ".join(_LOST_INSIDE[kind] for kind in inside),
        remedy="for the whole machine: on the host, or docker run --pid=host --userns=host --cgroupns=host",
    )


def _is_inside(tree: Tree, kind: str) -> bool:
    try:
        return os.readlink(f"{tree.proc_root}/self/ns/{kind}") != _FIRST_NAMESPACES[kind]
    except OSError:
        return False  # a kernel without that kind, so there is but one; or no /proc, which is said elsewhere


def _count_processes(tree: Tree) -> int:
    try:
        return sum(entry.isdecimal() for entry in os.listdir(tree.proc_root))
    except OSError:
        return 0


def _format_limit(limit: Limit | None, *, is_bytes: bool = False) -> str:
    if limit is None:
        return "unknown"
    values = [
        "unlimited" if value == UNLIMITED else format_kib(value // 1024) if is_bytes else str(value) for value in limit
    ]
    return values[0] if values[0] == values[1] else "/".join(values)
