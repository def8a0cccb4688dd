"""The system calls of a reap: what the kernel, or a sandbox in its name, answered to each."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from oomreaper.linux.features.rights import CAP_IPC_LOCK, CAP_SYS_NICE, UNLIMITED
from oomreaper.model.features import Feature, FeatureState

if TYPE_CHECKING:
    from oomreaper.linux.features.interview import Answer, Interview
    from oomreaper.linux.features.rights import Limits, Standing

# Of each second. A reap takes 44 ms a GiB (2026-11), and a group past its budget waits for the next second.
_REALTIME_RUNTIME_US = 500_000

_REPORT = "unexpected: please report it, with the output of oomreaper doctor --json"
_FILTER_REMEDY = "permit it in the seccomp filter: see seccomp"


def describe_process_mrelease(interview: Interview, standing: Standing) -> Feature:
    """Judge the call that frees a dying process's memory: EBADF to a pidfd of -1 means that it is there."""
    answer = interview.answer_to("process_mrelease")
    if answer.number == errno.EBADF:
        return Feature("process_mrelease", FeatureState.AVAILABLE, "answers", is_needed=True)
    return Feature(
        "process_mrelease",
        _judge(answer),
        _tell(answer, standing),
        lost="a victim is killed, and its memory comes back only when it exits: a stuck one keeps it",
        remedy=find_remedy(answer, standing, "Linux 5.15 or later"),
        is_needed=True,
    )


def describe_pidfd(interview: Interview, standing: Standing) -> Feature:
    """Judge opening a pidfd and signalling through it: without both nothing is ever signalled."""
    opened, signalled = interview.answer_to("pidfd_open"), interview.answer_to("pidfd_send_signal")
    is_open, is_sent = opened.number == 0, signalled.number == errno.EBADF
    if is_open and is_sent:
        return Feature("pidfd", FeatureState.AVAILABLE, "open, send_signal", is_needed=True)
    call, answer = ("pidfd_send_signal", signalled) if is_open else ("pidfd_open", opened)
    return Feature(
        "pidfd",
        _judge(answer),
        f"{call}: {_tell(answer, standing)}",
        lost="nothing is killed: a signal by pid could hit whoever got that number since",
        remedy=find_remedy(answer, standing, "Linux 5.3 or later"),
        is_needed=True,
    )


def describe_kcmp(interview: Interview, standing: Standing) -> Feature:
    """Judge the only way to learn who shares a victim's memory."""
    answer = interview.answer_to("kcmp")
    if answer.number == 0:
        return Feature("kcmp", FeatureState.AVAILABLE, "answers")
    return Feature(
        "kcmp",
        _judge(answer),
        _tell(answer, standing),
        lost="who shares a victim's memory stays unknown, and while a sharer lives nothing is freed",
        remedy=find_remedy(answer, standing, "a kernel with CONFIG_KCMP"),
    )


def describe_sched_fifo(
    interview: Interview, standing: Standing, limits: Limits, groups_without_budget: list[str]
) -> Feature:
    """Judge real-time priority, by which a reap comes before the victim's own exit."""
    answer = interview.answer_to("sched_fifo")
    if answer.number == 0:
        return Feature("sched_fifo", FeatureState.AVAILABLE, "real-time priority 1")
    if answer.number == errno.EPERM:
        found, remedy = _explain_fifo_refusal(standing, limits, groups_without_budget)
    else:
        found = _tell(answer, standing)
        remedy = find_remedy(answer, standing, "a Python built with glibc (musl refuses)")
    return Feature(
        "sched_fifo",
        _judge(answer),
        found,
        lost="most healthy victims exit before they can be reaped: memory comes back up to 1.8 times later",
        remedy=remedy,
    )


def _explain_fifo_refusal(standing: Standing, limits: Limits, groups_without_budget: list[str]) -> tuple[str, str]:
    """Tell the causes of one EPERM apart, for each has its own remedy: ``(found, remedy)``."""
    is_granted = limits.rtprio is not None and limits.rtprio.soft > 0
    if not is_granted and not standing.has_for_machine(CAP_SYS_NICE):
        found = f"EPERM: neither {_name_right(standing, CAP_SYS_NICE)} nor RLIMIT_RTPRIO"
        return found, _tell_how_to_get(standing, CAP_SYS_NICE, "LimitRTPRIO=1, --ulimit rtprio=1")
    if groups_without_budget:
        writes = [f"echo {_REALTIME_RUNTIME_US} > {_quote(group)}/cpu.rt_runtime_us" for group in groups_without_budget]
        return "EPERM: the v1 cpu cgroup has no real-time budget", " && ".join(writes)
    if standing.is_filtered:
        remedy = "in the unit: RestrictRealtime=no and SystemCallFilter=sched_setscheduler"
        return "EPERM though the right is there: a seccomp filter", remedy
    remedy = "boot with rt_group_sched=0, or run in the root of the cpu hierarchy"
    return "EPERM though the right is there: RT_GROUP_SCHED?", remedy


def describe_mlockall(interview: Interview, standing: Standing, limits: Limits) -> Feature:
    """Judge locked memory, which keeps a reaper from waiting for its own pages in a shortage."""
    name, answer, limit = "mlockall", interview.answer_to("mlockall"), limits.memlock_bytes
    remedy = _tell_how_to_get(standing, CAP_IPC_LOCK, "LimitMEMLOCK=infinity, --ulimit memlock=-1")
    if answer.number == 0:
        if standing.has_for_machine(CAP_IPC_LOCK) or limit is None or limit.soft == UNLIMITED:
            return Feature(name, FeatureState.AVAILABLE, "current, future, onfault")
        return Feature(
            name,
            FeatureState.LIMITED,
            "up to RLIMIT_MEMLOCK (see rlimits)",
            lost="an allocation beyond the limit fails",
            remedy=remedy,
        )
    lost = "in a shortage the reaper may have to wait for its own pages"
    is_limit_zero = limit is not None and limit.soft == 0
    if answer.number == errno.ENOMEM or (answer.number == errno.EPERM and is_limit_zero):
        found = f"{answer}: RLIMIT_MEMLOCK, no {_name_right(standing, CAP_IPC_LOCK)}"
        return Feature(name, FeatureState.FORBIDDEN, found, lost=lost, remedy=remedy)
    remedy = find_remedy(answer, standing, "Linux 4.4 or later")
    return Feature(name, _judge(answer), _tell(answer, standing), lost=lost, remedy=remedy)


def find_remedy(answer: Answer, standing: Standing, newer: str) -> str:
    """Tell what to do about a refusal; ``newer`` is what to get when the kernel has it not."""
    if answer.is_our_bug:
        return _REPORT
    if answer.number is None and not answer.signal_number:
        return f"{answer.word}; let this program start Python, or ask from a shell: oomreaper doctor"
    if answer.number == errno.ENOSYS:
        return f"{newer}; or {_FILTER_REMEDY}" if standing.is_filtered else newer
    if answer.number in (errno.EINVAL, errno.ENOENT):
        return newer
    if answer.is_refused:
        is_by_filter = standing.is_filtered or answer.signal_number
        return _FILTER_REMEDY if is_by_filter else "no seccomp filter did it: look for the denial in the audit log"
    return _REPORT


def _judge(answer: Answer) -> FeatureState:
    """Say what an answer other than the good one means."""
    if answer.number in (errno.ENOSYS, errno.EINVAL):
        return FeatureState.MISSING
    return FeatureState.FORBIDDEN


def _tell(answer: Answer, standing: Standing) -> str:
    if answer.number == errno.ENOSYS and standing.is_filtered:
        return "ENOSYS, from the kernel or from a seccomp filter"
    return str(answer)


def _name_right(standing: Standing, capability: str) -> str:
    return f"{capability} of the machine" if standing.is_user_namespaced else capability


def _tell_how_to_get(standing: Standing, capability: str, limit_settings: str) -> str:
    if standing.has(capability):
        return f"start it outside the user namespace, docker run --userns=host; or {limit_settings}"
    return f"{standing.tell_how_to_get(capability)}; or {limit_settings}"


def _quote(path: str) -> str:
    import shlex  # only where a remedy names a path

    return shlex.quote(path)
