"""A look of an errand that is lost: it is made again for a while, and what it lacks is no right."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from oomreaper.linux import syscalls
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.jobs import Scouted
from oomreaper.watch import errand

if TYPE_CHECKING:
    import pytest

_MS = 1_000_000


def _reap_a_child(monkeypatch: pytest.MonkeyPatch, lost: Scouted, *, times: int) -> tuple[Outcome, int]:
    """Its outcome, and how many looks there were, of which the first so many are answered by ``lost``."""
    looks = 0

    class Forgetful(Crew):
        def take_scouted(self) -> list[tuple[int, Scouted]]:
            nonlocal looks
            taken = []
            for handle, scouted in super().take_scouted():
                looks += 1
                taken.append((handle, lost if looks <= times else scouted))
            return taken

    monkeypatch.setattr(errand, "Crew", Forgetful)
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            signal.pause()
        finally:
            os._exit(0)
    try:
        made = errand.Errand([errand.Target(pid)], errand.make_settings(timeout_seconds=5, coredump="abort"))
        (outcome,) = made.run()
    finally:
        os.kill(pid, signal.SIGKILL)  # our own child, not waited for yet
        os.waitpid(pid, 0)
    return outcome, looks


def test_a_look_that_was_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times no memory for it: the fourth look is as good as the first would have been."""
    outcome, looks = _reap_a_child(monkeypatch, Scouted(None, "could not look at it: ENOMEM"), times=3)

    assert looks == 4
    assert outcome.kind is not None
    assert outcome.kind.is_success


def test_looks_that_are_all_lost_refuse_it_and_ask_for_no_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is a time; a shortage is not mended by root."""
    monkeypatch.setattr(errand, "LOOK_LIMIT_NS", 100 * _MS)
    outcome, looks = _reap_a_child(monkeypatch, Scouted(None, "could not look at it: ENOMEM"), times=1_000)

    assert 2 <= looks <= 10
    assert (outcome.kind, outcome.needs_permission) == (OutcomeKind.REFUSED, False)
    assert "ENOMEM" in outcome.reason


def test_a_look_that_lacks_a_right_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lack it the next time, too; that is exit status 3."""
    outcome, looks = _reap_a_child(monkeypatch, Scouted(None, "hidepid", needs_permission=True), times=1_000)

    assert looks == 1
    assert (outcome.kind, outcome.needs_permission) == (OutcomeKind.REFUSED, True)
