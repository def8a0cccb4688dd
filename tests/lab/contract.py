"""What the runner takes for granted of any guest. Held against the fake always, and against a real one where there is.

``LAB_REAL=small`` (or ``full``) in the environment: ``test_contract.py`` boots one, with the newest kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.seam import HOME, PROBE_PORT, MachineSpec
from lab.talk import NS, RefusedError, Talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.seam import Guest, Heard, Maker

SPEC = MachineSpec(image="small", kernel="newest", memory_mib=768, cpus=2, zram_mib=0, swap_mib=0)


class Room:
    """A guest, and all that it has said."""

    def __init__(self, guest: Guest, now_ns: Callable[[], int]) -> None:
        self.heard: list[Heard] = []
        self.talk = Talk(guest, self.heard.append, now_ns)

    def await_event(self, event: str, within_s: float = 30.0, **fields: object) -> Heard:
        """Wait for a message that has these fields; it may have come already."""

        def find() -> Heard | None:
            wanted = {"event": event, **fields}
            return next((each for each in self.heard if wanted.items() <= each.message.items()), None)

        self.talk.listen(self.talk.now_ns() + int(within_s * NS), lambda: find() is not None)
        found = find()
        assert found is not None, f"no {event} with {fields} came"
        return found


class Contract:
    """Tests; a class that inherits them has a fixture ``maker`` and one ``now_ns``."""

    @pytest.fixture
    def room(self, maker: Maker, now_ns: Callable[[], int]) -> Iterator[Room]:
        """A ready guest."""
        with maker.open(SPEC) as guest:
            yield Room(guest, now_ns)

    def test_hello_says_what_the_machine_is(self, room: Room) -> None:
        """The memory is what was asked for, less what the kernel keeps; there is no swap that nobody asked for."""
        facts = room.talk.ask("hello")

        assert 0.8 * SPEC.memory_mib * 1024 <= facts["memory_kib"] <= SPEC.memory_mib * 1024
        assert facts["swap_kib"] == 0
        assert isinstance(facts["kernel"], str)
        assert isinstance(facts["monotonic_ns"], int)
        assert {"tracing", "cgroup2", "psi"} <= facts["has"].keys()

    def test_a_command_that_there_is_none_of_is_refused(self, room: Room) -> None:
        """With a reason; and the next command is served."""
        with pytest.raises(RefusedError):
            room.talk.ask("dance")

        assert isinstance(room.talk.ask("ping")["monotonic_ns"], int)

    def test_a_command_is_run_to_its_end(self, room: Room) -> None:
        """Its exit status and its output come with the answer."""
        spoke = room.talk.ask("run", argv=["echo", "word"])
        failed = room.talk.ask("run", argv=["sh", "-c", "exit 3"])

        assert (spoke["status"], spoke["output"]) == (0, "word\n")
        assert failed["status"] == 3

    def test_a_command_that_takes_too_long_is_ended(self, room: Room) -> None:
        """It is refused when its time is over, and other commands are served meanwhile."""
        number = room.talk.send("run", argv=["sleep", "60"], timeout_s=2)
        room.talk.ask("ping", within_s=1.5)
        assert not room.talk.has_answered(number)

        room.talk.listen(room.talk.now_ns() + 20 * NS, lambda: room.talk.has_answered(number))
        with pytest.raises(RefusedError):
            room.talk.take_answer(number, "run")

    def test_what_a_program_says_is_told_line_by_line(self, room: Room) -> None:
        """Under the name it was started with; an order goes to its stdin, and the end of that ends it."""
        pid = room.talk.ask("start", name="parrot", argv=["cat"])["pid"]
        room.talk.ask("order", name="parrot", text="polly")
        room.await_event("line", name="parrot", text="polly")
        room.talk.ask("close", name="parrot")
        ended = room.await_event("ended", name="parrot")

        assert (ended.message["pid"], ended.message["status"], ended.message["signal"]) == (pid, 0, None)

    def test_who_was_killed_is_told_with_the_signal(self, room: Room) -> None:
        """And when, by the guest's clock, which is that of ``ping``."""
        room.talk.ask("start", name="sleeper", argv=["sleep", "1000"])
        before_ns = room.talk.ask("ping")["monotonic_ns"]
        room.talk.ask("signal", name="sleeper", signal=9)
        ended = room.await_event("ended", name="sleeper").message
        after_ns = room.talk.ask("ping")["monotonic_ns"]

        assert (ended["status"], ended["signal"]) == (None, 9)
        assert before_ns <= ended["at_ns"] <= after_ns

    def test_files_are_written_and_read(self, room: Room) -> None:
        """One that is not there is refused."""
        room.talk.ask("mkdir", path="/tmp/contract/inner")
        room.talk.ask("write", path="/tmp/contract/inner/file", text="text\n")

        assert room.talk.ask("read", path="/tmp/contract/inner/file")["text"] == "text\n"
        with pytest.raises(RefusedError):
            room.talk.ask("read", path="/tmp/contract/none")

    def test_the_probe_beats_by_both_clocks(self, room: Room) -> None:
        """Ten heartbeats a second at least, each of a later guest's time; some with memory in them."""
        room.talk.ask("start", name="probe", argv=[f"{HOME}/bin/probe", PROBE_PORT])
        room.await_event("beat", n=10)
        room.talk.listen(room.talk.now_ns() + 2 * NS)
        beats = [each for each in room.heard if each.message.get("event") == "beat"]
        guest_ns = [each.message["at_ns"] for each in beats]

        assert len(beats) > 20
        assert guest_ns == sorted(guest_ns)
        assert any(each.message.get("available_kib", 0) > 0 for each in beats)
        assert beats[-1].message["touched"] > beats[0].message["touched"]

    def test_usage_and_stats_are_numbers(self, room: Room) -> None:
        """What cannot be read is None."""
        pid = room.talk.ask("start", name="sleeper", argv=["sleep", "1000"])["pid"]
        usage, stats = room.talk.ask("usage", pid=pid), room.talk.ask("stats")

        assert usage["cpu_ms"] is None or usage["cpu_ms"] >= 0
        assert usage["pss_kib"] is None or usage["pss_kib"] > 0
        assert stats["available_kib"] > 0


class TracingContract(Contract):
    """What only a kernel can show."""

    def test_the_tracer_tells_of_a_kill(self, room: Room) -> None:
        """With the sender, the victim and the guest's time; ``lab.observer`` reads the line."""
        from lab.observer import parse_signal

        room.talk.ask("trace", on=True)
        pid = room.talk.ask("start", name="sleeper", argv=["sleep", "1000"])["pid"]
        before_ns = room.talk.ask("ping")["monotonic_ns"]
        room.talk.ask("signal", name="sleeper", signal=9)
        room.await_event("ended", name="sleeper")
        room.talk.listen(room.talk.now_ns() + 2 * NS)
        signals = [parse_signal(str(each.message["text"])) for each in room.heard if each.message["event"] == "trace"]
        found = [signal for signal in signals if signal is not None and signal.pid == pid]

        assert [(each.signal, each.result) for each in found] == [(9, 0)]
        assert before_ns - NS // 1000 <= found[0].guest_ns

    def test_a_program_is_an_ordinary_one(self, room: Room) -> None:
        """Neither real-time nor locked nor spared, whatever the agent is; its group is where it was to be."""
        room.talk.ask("mkdir", path="/sys/fs/cgroup/contract")
        room.talk.ask("start", name="looker", argv=["sleep", "1000"], group="contract", oom_score_adj=200)
        pid = room.talk.ask("start", name="plain", argv=["sleep", "1000"])["pid"]
        inside = room.talk.ask("read", path="/sys/fs/cgroup/contract/cgroup.procs")["text"].split()
        status = room.talk.ask("read", path=f"/proc/{pid}/status")["text"]
        policy = room.talk.ask("read", path=f"/proc/{pid}/stat")["text"].rpartition(")")[2].split()[38]

        assert len(inside) == 1
        assert room.talk.ask("read", path=f"/proc/{inside[0]}/oom_score_adj")["text"] == "200\n"
        assert room.talk.ask("read", path=f"/proc/{pid}/oom_score_adj")["text"] == "0\n"
        assert "VmLck:\t       0 kB" in status
        assert policy == "0"
