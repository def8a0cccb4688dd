"""The real watcher on the model: ``Team``, ``Watcher``, ``Candidates``, ``Hunter``, ``Scouts``, ``Crew``, unmodified.

What ``watch/start.py`` composes is composed here once more, with ``Crowd`` for the kernel's numbers, ``Hands`` for the
workers, ``Teller`` for the voice, and a loop that waits in virtual time where ``watch/loop.py`` waits in an epoll.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.plan import MACHINE
from oomreaper.reaper.crew import Crew
from oomreaper.sim.crowd import Crowd
from oomreaper.sim.engine import Band
from oomreaper.sim.hands import Hands
from oomreaper.sim.linux.calls import ProcRoot
from oomreaper.sim.linux.files import CGROUPS
from oomreaper.sim.reaping import wait_for_news
from oomreaper.watch.actors import Enforcer
from oomreaper.watch.handles import Handles
from oomreaper.watch.mind.candidates import Candidates
from oomreaper.watch.mind.hunter import Hunter
from oomreaper.watch.mind.scouts import Scouts
from oomreaper.watch.mind.team import Team
from oomreaper.watch.mind.watcher import Watcher
from oomreaper.watch.start import make_settings

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.outcome import Outcome
    from oomreaper.model.plan import Plan
    from oomreaper.sim.linux.calls import Calls
    from oomreaper.sim.userland import Userland
    from oomreaper.watch.mind.hunt import Hunt


class Told(NamedTuple):
    """One thing that was told: ``kind`` is announce, killed, settled, skipped or warning."""

    now_ns: int
    kind: str
    identity: Identity | None
    text: str
    outcome: Outcome | None = None


class Teller:
    """Keeps what is told. Implements ``oomreaper.watch.mind.hunter.Voice``."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def announce(self, hunt: Hunt, *, signal_name: str, hook: str | None, now_ns: int) -> None:  # noqa: ARG002 - no hooks here
        """A victim is about to be signalled."""
        self.told.append(Told(now_ns, "announce", hunt.identity, f"{signal_name}: {hunt.due.reason}"))

    def killed(self, hunt: Hunt, *, signal_name: str, now_ns: int) -> None:
        """The signal has been sent."""
        self.told.append(Told(now_ns, "killed", hunt.identity, signal_name))

    def settled(self, hunt: Hunt, outcome: Outcome, now_ns: int) -> None:
        """It ended."""
        self.told.append(Told(now_ns, "settled", hunt.identity, outcome.reason, outcome))

    def skipped(self, text: str, *, scope: str, incident: str | None, hunt: Hunt | None, now_ns: int) -> None:  # noqa: ARG002 - the seam's
        """Nothing was done, and why."""
        self.told.append(Told(now_ns, "skipped", None if hunt is None else hunt.identity, text))

    def warning(self, text: str, *, scope: str | None, incident: str | None, now_ns: int) -> None:  # noqa: ARG002 - the seam's
        """Something that people should know."""
        self.told.append(Told(now_ns, "warning", None, text))

    def of_kind(self, kind: str) -> list[Told]:
        """What was told of a kind, in order."""
        return [told for told in self.told if told.kind == kind]


class _Handles(Handles):
    """The real pidfds, and a callback in place of epoll's POLLIN."""

    def __init__(self, userland: Userland, hands: Hands) -> None:
        self._land = userland
        self._hands = hands
        super().__init__(userland.user.keep(ProcRoot()))

    def watch(self, handle: int) -> None:
        """Wake the loop when it ends; the loop looks at all that are watched."""
        super().watch(handle)
        self._land.user.descriptors[handle].process.on_exit.append(self._hands.news.wake_all)

    def ended(self) -> list[int]:
        """The watched ones that have ended and were not told of."""
        descriptors = self._land.user.descriptors
        return [handle for handle in sorted(self.watched) if descriptors[handle].process.is_dead]


class Watch:
    """The watcher as a process of the model. It runs until the simulation ends, or is killed.

    Args:
        userland: Where it runs.
        calls: What ``bound`` gave.
        plan: What it is to do when.
        band: The scheduling class of watcher and workers.
    """

    def __init__(self, userland: Userland, calls: Calls, plan: Plan, *, band: Band = Band.FIFO) -> None:
        self.voice = Teller()
        self.team: Team | None = None
        self.hands: Hands | None = None
        self.turns = 0
        self.ready_ns: int | None = None
        self._land = userland
        self._engine = userland.machine.engine
        self._calls = calls
        self._plan = plan
        self._band = band
        self._is_hinted = False
        self.user = userland.add("oomreaper", self._main, uid=0, band=band)
        userland.machine.pressure.on_trigger.append(self._on_pressure)

    @property
    def is_settled(self) -> bool:
        """Whether it has dealt with somebody, awaits nobody, and no worker has anything to do."""
        team = self.team
        return bool(self.voice.told) and team is not None and not team.hunter.open_hunts and team.crew.is_quiet

    def _main(self) -> None:
        hands = self.hands = Hands(self._land, self._calls, self.user.process, band=self._band)
        handles = _Handles(self._land, hands)
        crew = Crew(hands, make_settings(self._plan))
        crowd = Crowd(self._land, crew=crew, handles=handles)
        scouts = Scouts(crew, handles.open, handles.close)
        actor = Enforcer(crew, lambda path: f"{CGROUPS}/memory{path}")
        hunter = Hunter(
            self._plan,
            actor=actor,
            scouts=scouts,
            handles=handles,
            onlooker=crowd,
            voice=self.voice,
            ourselves=hands.ourselves,
        )
        candidates = Candidates(
            self._plan,
            people=crowd,
            scouts=scouts,
            is_hunted=hunter.is_hunted,
            ourselves=hands.ourselves,
            may_signal_uid=None,
        )
        watcher = Watcher(
            self._plan, machine=crowd, candidates=candidates, hunter=hunter, voice=self.voice, boot_tag="sim"
        )
        team = self.team = Team(
            watcher,
            hunter=hunter,
            scouts=scouts,
            crew=crew,
            actor=actor,
            candidates=candidates,
            answers=crowd,
            voice=self.voice,
        )
        crew.start(self._now())
        while not crew.is_ready:
            wait_for_news(self._land, hands, crew.next_deadline_ns())
            hands.deliver(crew, self._now)
            crew.on_time(self._now())
        self.ready_ns = self._now()
        while True:
            self._turn(team, hands, handles)

    def _turn(self, team: Team, hands: Hands, handles: _Handles) -> None:
        """One turn of ``watch/loop.py``: wait, deal with what happened, do what is due."""
        self.turns += 1
        if not (hands.has_news or self._is_hinted):
            wait_for_news(self._land, hands, team.next_deadline_ns())
        hands.deliver(team.crew, self._now)
        for handle in handles.ended():
            handles.watched.discard(handle)
            team.on_exit(handle, self._now())
        if self._is_hinted:
            self._is_hinted = False
            team.watcher.look(MACHINE, self._now())
        team.collect(self._now())
        team.on_time(self._now())

    def _on_pressure(self) -> None:
        """The kernel's trigger: a hint."""
        self._is_hinted = True
        if self.hands is not None:
            self.hands.news.wake_all()

    def _now(self) -> int:
        return self._engine.now_ns
