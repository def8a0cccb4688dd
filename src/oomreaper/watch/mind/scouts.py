"""Candidates that were looked at ahead of need: each with its pidfd open and its sharers known.

What a decision waits for longest is the look at the victim (who shares its memory: a comparison with every process). So
the leading candidates are looked at while there is still time; a look holds for a second. Pure but for the two calls
that it is given for opening and closing a pidfd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oomreaper.model.identity import Identity
    from oomreaper.model.process import Scouting
    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.jobs import Scouted

_MS = 1_000_000
# A look is renewed after this, so that one that is needed is seldom older.
_RENEW_NS = 500 * _MS
# A look that is older is not decided upon. Sharers that came later are found by the reaper itself (EINVAL, rescan);
# oom_score_adj is read again by the census in the moment of the decision.
_VALID_NS = 1_000 * _MS
# How long candidates of which nobody speaks any more keep their descriptor.
_IDLE_NS = 5_000 * _MS


class Looked(NamedTuple):
    """The answer to a look: ``scouting`` None when nothing is seen; ``problem`` says what stood in the way."""

    identity: Identity
    handle: int
    scouting: Scouting | None
    problem: str | None


class _Candidate:
    __slots__ = ("asked_ns", "handle", "is_asked", "looked_ns", "problem", "scouting", "wanted_ns")

    def __init__(self, handle: int, now_ns: int) -> None:
        self.handle = handle
        self.is_asked = False
        self.asked_ns = self.wanted_ns = now_ns
        self.looked_ns: int | None = None
        self.scouting: Scouting | None = None
        self.problem: str | None = None


class Scouts:
    """Keeps looks fresh.

    Args:
        crew: Does the looking.
        open_handle: Opens a pidfd; None when there is no such process, or no descriptor to be had.
        close_handle: Closes one.
        limit: How many candidates are kept at most; a victim that must be looked at now is let in besides.
    """

    def __init__(
        self,
        crew: Crew,
        open_handle: Callable[[int], int | None],
        close_handle: Callable[[int], None],
        *,
        limit: int = 12,
    ) -> None:
        self._crew = crew
        self._open = open_handle
        self._close = close_handle
        self._limit = limit
        self._candidates: dict[Identity, _Candidate] = {}

    def want(self, identities: Iterable[Identity], now_ns: int) -> None:
        """See to it that there is a fresh look at each; the rest is let go of after a while."""
        for identity in identities:
            if identity in self._candidates or self._has_room():
                self._ask(identity, now_ns)
        for identity, candidate in list(self._candidates.items()):
            if not candidate.is_asked and now_ns - candidate.wanted_ns > _IDLE_NS:
                self._forget(identity)

    def take(self, identity: Identity, now_ns: int) -> Looked | None:
        """The look at a process, with its pidfd, which is the caller's from now on; None: ask, and come again."""
        candidate = self._candidates.get(identity)
        if candidate is None or candidate.looked_ns is None or now_ns - candidate.looked_ns > _VALID_NS:
            return None
        if candidate.is_asked:  # it is being looked at once more: the answer will find its handle closed, or reused
            return None
        del self._candidates[identity]
        return Looked(identity, candidate.handle, candidate.scouting, candidate.problem)

    def ask(self, identity: Identity, now_ns: int) -> bool:
        """Have a process looked at now, whatever the limit; False when there is no pidfd for it."""
        return self._ask(identity, now_ns, renew_ns=0)

    def on_scouted(self, handle: int, scouted: Scouted, now_ns: int) -> Identity | None:
        """A look is finished; say whose."""
        for identity, candidate in self._candidates.items():
            if candidate.handle == handle:
                candidate.is_asked = False
                candidate.looked_ns = now_ns
                candidate.scouting = scouted.scouting
                candidate.problem = scouted.problem
                return identity
        return None

    def close(self) -> None:
        """Let go of all."""
        for identity in list(self._candidates):
            self._forget(identity)

    def __len__(self) -> int:
        return len(self._candidates)

    def _ask(self, identity: Identity, now_ns: int, *, renew_ns: int = _RENEW_NS) -> bool:
        candidate = self._candidates.get(identity)
        if candidate is None:
            self._make_room()
            handle = self._open(identity.pid)
            if handle is None:
                return False
            candidate = self._candidates[identity] = _Candidate(handle, now_ns)
        candidate.wanted_ns = now_ns
        is_fresh = candidate.looked_ns is not None and now_ns - candidate.looked_ns < renew_ns
        if not candidate.is_asked and not is_fresh:
            candidate.is_asked = True
            candidate.asked_ns = now_ns
            self._crew.scout(identity.pid, candidate.handle, now_ns)
        return True

    def _has_room(self) -> bool:
        """Whether there is, or can be, a place for one more: whoever is being looked at keeps his."""
        candidates = self._candidates.values()
        return len(candidates) < self._limit or not all(candidate.is_asked for candidate in candidates)

    def _make_room(self) -> None:
        if len(self._candidates) < self._limit:
            return
        idle = [
            (candidate.wanted_ns, identity)
            for identity, candidate in self._candidates.items()
            if not candidate.is_asked
        ]
        if idle:
            self._forget(min(idle)[1])

    def _forget(self, identity: Identity) -> None:
        self._close(self._candidates.pop(identity).handle)
