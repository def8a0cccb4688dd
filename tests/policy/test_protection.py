"""Who is never killed: every refusal, its reason, and that nothing else is refused."""

from __future__ import annotations

import errno

import pytest

from oomreaper.policy.protection import HIGHEST_PID, Ourselves, refuse_pid, refuse_process
from tests.reaper.fakes import scouting, sharer

OURSELVES = Ourselves(frozenset({100, 101}), frozenset({1, 90, 91}), process_group=80, session=70)


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (-1, "process group"),
        (-500, "process group"),
        (0, "own process group"),
        (1, "init"),
        (HIGHEST_PID + 1, "above"),
        (100, "itself"),
        (101, "itself"),
        (90, "descends"),
        (91, "descends"),
        (80, "process group"),
        (70, "session"),
    ],
)
def test_a_pid_that_is_never_a_victim(pid: int, reason: str) -> None:
    """Groups, init, ourselves, our workers, our ancestors, the leaders that would take us along."""
    refusal = refuse_pid(pid, OURSELVES)

    assert refusal is not None
    assert reason in refusal.reason


@pytest.mark.parametrize("pid", [2, 71, 500, HIGHEST_PID])
def test_other_pids_are_not_refused_by_their_number(pid: int) -> None:
    """A number alone speaks against nobody else."""
    assert refuse_pid(pid, OURSELVES) is None


def test_an_unseen_group_or_session_refuses_nobody() -> None:
    """In a pid namespace the leader may lie outside: it is 0 then, and names nobody."""
    assert refuse_pid(500, Ourselves(frozenset({100}), frozenset(), 0, 0)) is None


def test_an_ordinary_process_is_not_refused() -> None:
    """A process without protection, with an ordinary sharer, may be killed."""
    assert refuse_process(scouting(500, sharers=(501,)), OURSELVES) is None


@pytest.mark.parametrize(
    ("changes", "reason", "needs_permission"),
    [
        ({"is_kernel_thread": True}, "kernel thread", False),
        ({"oom_score_adj": -1000}, "means never", False),
        ({"signal_errno": errno.EPERM}, "as root", True),
    ],
)
def test_a_protected_process(changes: dict[str, object], reason: str, needs_permission: bool) -> None:  # noqa: FBT001
    """Kernel threads, the user's "never", somebody else's: refused, with what would help."""
    refusal = refuse_process(scouting(500, **changes), OURSELVES)  # type: ignore[arg-type] # fields of Process

    assert refusal is not None
    assert reason in refusal.reason
    assert refusal.needs_permission is needs_permission


def test_a_score_of_minus_999_is_not_never() -> None:
    """Only -1000 means never."""
    assert refuse_process(scouting(500, oom_score_adj=-999), OURSELVES) is None


@pytest.mark.parametrize(
    ("protected", "reason"),
    [
        (sharer(1), "init"),
        (sharer(100), "itself"),
        (sharer(90), "descends"),
        (sharer(501, oom_score_adj=-1000), "means never"),
        (sharer(501, signal_errno=errno.EPERM), "as root"),
    ],
)
def test_a_protected_sharer_protects_the_victim(protected: object, reason: str) -> None:
    """Killing all but one of an address space frees nothing: so none of them is killed."""
    refusal = refuse_process(scouting(500)._replace(sharers=(sharer(600), protected)), OURSELVES)  # type: ignore[arg-type]

    assert refusal is not None
    assert "shares its memory" in refusal.reason
    assert reason in refusal.reason
