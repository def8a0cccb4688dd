"""The watcher and its reaper as one thing to drive: what comes out of one is brought to the other. Pure.

The daemon's loop, the tests and the simulator drive the same object; only what they wait with differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from oomreaper.watch.mind.hunt import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.event import Event
    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import Profile
    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.jobs import Reclaimed
    from oomreaper.watch.mind.candidates import Candidates
    from oomreaper.watch.mind.hunter import Hunter, Voice
    from oomreaper.watch.mind.scouts import Scouts
    from oomreaper.watch.mind.watcher import Watcher


# What comes of one thing may bring the next. What is left after so many is seen to a moment later, at the next look.
_ROUNDS = 16


class Pending(Protocol):
    """An actor that has something to tell by itself."""

    def take_events(self) -> list[Event]:
        """What it has to tell."""


class Answers(Protocol):
    """What the workers did beside the victims."""

    def take_profiled(self) -> list[tuple[Identity, Profile | None]]:
        """Profiles that have been read."""

    def take_reclaimed(self) -> list[Reclaimed]:
        """Reclaims that are done."""


class Team:
    """Drive this: call ``on_time`` in time, ``collect`` after anything has happened."""

    def __init__(
        self,
        watcher: Watcher,
        *,
        hunter: Hunter,
        scouts: Scouts,
        crew: Crew,
        actor: Pending,
        candidates: Candidates,
        answers: Answers,
        voice: Voice,
    ) -> None:
        self.watcher = watcher
        self.hunter = hunter
        self.crew = crew
        self._scouts = scouts
        self._actor = actor
        self._candidates = candidates
        self._answers = answers
        self._voice = voice

    def next_deadline_ns(self) -> int | None:
        """When ``on_time`` must be called at the latest."""
        due = [at for at in (self.watcher.next_deadline_ns(), self.crew.next_deadline_ns()) if at is not None]
        return min(due, default=None)

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
        self.crew.on_time(now_ns)
        self.collect(now_ns)
        self.watcher.on_time(now_ns)
        self.collect(now_ns)

    def on_exit(self, handle: int, now_ns: int) -> None:
        """The process that a watched pidfd names has ended."""
        self._bring(now_ns)  # that it was signalled is told before that it ended
        for hunt in self.hunter.open_hunts:
            if hunt.handle == handle and hunt.state is State.STRUCK:
                self.crew.on_victim_exit(hunt.identity, now_ns)
        identity = self.hunter.on_exit(handle, now_ns)
        if identity is not None:
            self.crew.on_victim_exit(identity, now_ns)
            self.crew.forget(identity)

    def collect(self, now_ns: int) -> None:
        """Bring to each what the other has for it, until nobody has anything left."""
        self._tell_of_side_jobs(now_ns)
        self._candidates.on_profiled(self._answers.take_profiled())
        for _ in range(_ROUNDS):
            has_come = self._bring(now_ns)
            if not self.watcher.settle(now_ns) and not has_come:
                break

    def drive(self, is_done: Callable[[], bool], wait: Callable[[int | None], int], limit_ns: int) -> bool:
        """Go on until something is so, or until ``limit_ns``; ``wait`` waits as long as it is told, and says when."""
        now_ns = wait(0)
        while not is_done():
            if now_ns >= limit_ns:
                return False
            deadline_ns = self.next_deadline_ns()
            until_ns = limit_ns if deadline_ns is None else min(limit_ns, deadline_ns)
            now_ns = wait(max(0, until_ns - now_ns))
            self.on_time(now_ns)
        return True

    def _bring(self, now_ns: int) -> bool:
        """Bring the crew's looks and events to the hunter; whether there were any."""
        scouted = self.crew.take_scouted()
        for handle, answer in scouted:
            identity = self._scouts.on_scouted(handle, answer, now_ns)
            if identity is not None:
                self.hunter.on_scouted(identity, now_ns)
        events = [*self.crew.take_events(), *self._actor.take_events()]
        for event in events:
            self.hunter.on_event(event, now_ns)
        return bool(scouted or events)

    def _tell_of_side_jobs(self, now_ns: int) -> None:
        for killed in self.crew.take_unit_killed():
            if not killed.killed_count and not killed.refused:
                continue  # all had gone
            text = f"{killed.killed_count} more processes were killed with it"
            if killed.refused:
                text += f"; left out: {'; '.join(killed.refused[:8])}"
            self._voice.warning(text, scope=None, incident=None, now_ns=now_ns)
        for reclaimed in self._answers.take_reclaimed():
            self._voice.warning(reclaimed.describe(), scope=None, incident=None, now_ns=now_ns)
