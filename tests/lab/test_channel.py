"""What is heard from a guest, and what becomes of one that says nothing any more."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from lab.channel import Channel
from lab.seam import GuestLostError
from lab.talk import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Guest:
    """The other ends of the ports."""

    def __init__(self, agent: socket.socket, probe: socket.socket) -> None:
        self.agent = agent
        self.probe = probe

    def say(self, *messages: dict[str, object]) -> None:
        self.agent.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def read_command(self) -> dict[str, object]:
        command: dict[str, object] = json.loads(self.agent.makefile("rb").readline())
        return command


@contextlib.contextmanager
def _talking(silence_limit_s: float = 5.0) -> Iterator[tuple[Channel, _Guest]]:
    agent, guest_agent = socket.socketpair()
    probe, guest_probe = socket.socketpair()
    with agent, guest_agent, probe, guest_probe:
        channel = Channel(agent, probe, explain_end=lambda: "the console's end", silence_limit_s=silence_limit_s)
        yield channel, _Guest(guest_agent, guest_probe)


def test_a_message_in_pieces_is_one_message() -> None:
    """Bytes come as they come: a message is heard when its line is whole, and stamped then."""
    with _talking() as (channel, guest):
        guest.agent.sendall(b'{"event": "li')
        early = channel.hear(0.05)
        before_ns = time.monotonic_ns()
        guest.agent.sendall(b'ne", "text": "a"}\n{"event": "up"}\n')
        first, second = channel.hear(1), channel.hear(1)

    assert early is None
    assert first is not None
    assert second is not None
    assert first.message == {"event": "line", "text": "a"}
    assert first.at_ns >= before_ns
    assert second.message == {"event": "up"}


def test_both_ports_are_heard() -> None:
    """The probe's heartbeats come through the same door as the agent's messages."""
    with _talking() as (channel, guest):
        guest.probe.sendall(b'{"event": "beat"}\n')
        heard = channel.hear(1)

    assert heard is not None
    assert heard.message["event"] == "beat"


def test_noise_on_a_port_is_passed_over() -> None:
    """Firmware and kernels write where they like: what is no message is none."""
    with _talking() as (channel, guest):
        guest.agent.sendall(b'\x1b[2J\r\nSeaBIOS\n[1, 2]\n{"no": "event"}\n\xff\xfe\n{"event": "up"}\n')
        heard = channel.hear(1)

    assert heard is not None
    assert heard.message == {"event": "up"}


def test_an_answer_is_the_one_to_the_command() -> None:
    """Other answers and events that come before it are not lost, and keep their order."""
    with _talking() as (channel, guest):
        guest.say({"event": "line", "text": "1"}, {"event": "answer", "id": 7, "ok": True})
        guest.say({"event": "answer", "id": -1, "ok": True, "pid": 42}, {"event": "line", "text": "2"})
        answer = channel.ask("start")
        command = guest.read_command()
        rest = [channel.hear(1) for _ in range(3)]

    assert answer["pid"] == 42
    assert command == {"id": -1, "do": "start"}
    assert [heard.message.get("text", "7") for heard in rest if heard is not None] == ["1", "7", "2"]


def test_a_refusal_says_why() -> None:
    """What the agent could not do is an error with the agent's own words."""
    with _talking() as (channel, guest):
        guest.say({"event": "answer", "id": -1, "ok": False, "error": "no such file"})
        with pytest.raises(RefusedError, match="read: no such file"):
            channel.ask("read", path="/nowhere")


def test_a_guest_that_ends_is_lost() -> None:
    """The end of qemu is told with what its console said last, and not waited for."""
    with _talking(silence_limit_s=60) as (channel, guest):
        guest.agent.close()
        with pytest.raises(GuestLostError, match="the console's end"):
            channel.hear(30)


def test_a_guest_that_is_silent_for_too_long_is_lost() -> None:
    """Nothing at all from either port: the wait is given up, however long the caller would have waited."""
    with _talking(silence_limit_s=0.2) as (channel, _):
        started_s = time.monotonic()
        with pytest.raises(GuestLostError, match="nothing was heard"):
            channel.hear(60)

        assert time.monotonic() - started_s < 10


def test_a_heartbeat_is_a_sign_of_life() -> None:
    """An agent that has nothing to say is no silent guest while the probe beats."""
    with _talking(silence_limit_s=0.6) as (channel, guest):
        for _ in range(6):
            guest.probe.sendall(b'{"event": "beat"}\n')
            assert channel.hear(1) is not None
            assert channel.hear(0.2) is None


def test_no_answer_in_time_is_a_lost_guest() -> None:
    """An agent that does not answer within its patience is as good as gone."""
    with _talking() as (channel, _), pytest.raises(GuestLostError, match="no answer to ping"):
        channel.ask("ping", patience_s=0.1)
