"""What is told goes to the companions first, then to the log, and the last of it is kept for explain."""

from __future__ import annotations

from typing import Any

from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.sample import Profile
from oomreaper.watch.mind.hunt import Hunt
from oomreaper.watch.voice import Speaker
from tests.watch.fakes import START_NS
from tests.watch.test_hunt import make_hunt


class FakeOutlet:
    """Keeps what is published, in one list with the log."""

    def __init__(self, said: list[tuple[str, dict[str, Any]]]) -> None:
        self._said = said
        self.secrets: list[tuple[dict[str, object] | None, int | None]] = []

    def publish(self, fields: dict[str, Any], *, secret: dict[str, object] | None, owner_uid: int | None) -> None:
        """Keep it."""
        self._said.append(("outlet", fields))
        self.secrets.append((secret, owner_uid))


class FakeLog:
    """Keeps what is logged."""

    def __init__(self, said: list[tuple[str, dict[str, Any]]]) -> None:
        self._said = said

    def record(self, fields: dict[str, Any]) -> None:
        """Keep it."""
        self._said.append(("log", fields))


class Scene:
    """A speaker and what it said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.outlet = FakeOutlet(self.said)
        self.speaker = Speaker(self.outlet, FakeLog(self.said))  # type: ignore[arg-type] # stand-ins
        self.hunt: Hunt = make_hunt()

    def say_all(self) -> None:
        """One of each."""
        speaker, hunt = self.speaker, self.hunt
        outcome = Outcome(100, 7, b"hog", OutcomeKind.REAPED)
        speaker.announce(hunt, signal_name="SIGTERM", hook="test-1/1", now_ns=START_NS)
        speaker.killed(hunt, signal_name="SIGTERM", now_ns=START_NS + 1)
        speaker.settled(hunt, outcome, START_NS + 2)
        speaker.skipped("not now", scope="machine", incident="test-1", hunt=hunt, now_ns=START_NS + 3)
        speaker.skipped("nobody", scope="machine", incident="test-1", hunt=None, now_ns=START_NS + 4)
        speaker.warning("look out", scope=None, incident=None, now_ns=START_NS + 5)


def test_each_thing_becomes_one_record_for_the_socket_and_then_for_the_log() -> None:
    """Companions act on it, so they come first; both get the same event and the moment in which it happened."""
    scene = Scene()
    scene.say_all()
    events = [(where, fields["event"]) for where, fields in scene.said]
    kinds = ["announce", "killed", "settled", "skipped", "skipped", "warning"]

    assert [kind for where, kind in events if where == "outlet"] == kinds
    assert [kind for where, kind in events if where == "log"] == kinds
    assert all(events.index(("outlet", kind)) < events.index(("log", kind)) for kind in kinds)
    assert [fields["monotonic_ns"] for where, fields in scene.said if where == "log"] == list(
        range(START_NS, START_NS + 6)
    )


def test_the_line_of_an_announcement_does_not_stand_before_the_signal() -> None:
    """Companions hear of it at once; its line waits for the end of the turn, or for the next record."""
    scene = Scene()
    scene.speaker.announce(scene.hunt, signal_name="SIGKILL", hook=None, now_ns=START_NS)
    before = [where for where, _ in scene.said]
    scene.speaker.flush()
    scene.speaker.flush()

    assert before == ["outlet"]
    assert [where for where, _ in scene.said] == ["outlet", "log"]


def test_a_record_names_its_incident_its_victim_and_its_hook() -> None:
    """What a hook or a person needs to match records: incident, pid and start time, hook, signal."""
    scene = Scene()
    scene.say_all()
    first = scene.said[0][1]

    assert (first["incident"], first["pid"], first["start_time_ticks"]) == ("test-1", 100, 7)
    assert (first["hook"], first["signal"]) == ("test-1/1", "SIGTERM")
    assert "pid" in scene.said[6][1]
    assert "pid" not in scene.said[8][1]


def test_a_command_line_goes_to_the_journal_and_as_a_secret_to_the_socket() -> None:
    """Everybody sees the record; the command line only who may, by the owner's uid. Explain's memory has none."""
    scene = Scene()
    process = scene.hunt.ranked.process._replace(profile=Profile(cmdline=b"hog --password x"))
    scene.hunt.ranked = scene.hunt.ranked._replace(process=process)
    scene.speaker.announce(scene.hunt, signal_name="SIGKILL", hook=None, now_ns=START_NS)
    scene.speaker.flush()
    (_, published), (_, logged) = scene.said

    assert "cmdline" not in published
    assert logged["cmdline"] == "hog --password x"
    assert scene.outlet.secrets == [({"cmdline": "hog --password x", "exe": None}, 1000)]
    assert all("cmdline" not in record for record in scene.speaker.last)


def test_the_last_ten_are_kept() -> None:
    """Explain shows what happened; older records are the clerk's."""
    scene = Scene()
    for number in range(15):
        scene.speaker.warning(str(number), scope=None, incident=None, now_ns=START_NS)

    assert [record["text"] for record in scene.speaker.last] == [str(number) for number in range(5, 15)]


def test_nothing_is_told_while_the_start_rehearses() -> None:
    """Silent: neither socket nor log nor memory; and aloud again afterwards."""
    scene = Scene()
    scene.speaker.is_silent = True
    scene.say_all()
    silent = (list(scene.said), list(scene.speaker.last))
    scene.speaker.is_silent = False
    scene.say_all()

    assert silent == ([], [])
    assert len(scene.said) == 12
