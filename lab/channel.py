"""What is heard from a guest: JSON lines of its two ports, each with the host's time. One poll, no thread.

Knows sockets, lines and clocks; nothing of qemu, and nothing of what is said. A guest that has ended, or from which not
a byte has come for too long, is lost (``GuestLostError``): waiting any longer would be waiting for ever.
"""

from __future__ import annotations

import collections
import json
import select
import time
from typing import TYPE_CHECKING, Any

from lab.seam import GuestLostError, Heard
from lab.talk import RefusedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

# How long nothing may be heard at all. A scenario lasts up to 120 s, and a machine that is out of memory may say
# nothing for all of it: that is a result, and not to be cut short.
SILENCE_LIMIT_S = 150.0
_READ_BYTES = 1 << 16
_NS = 1_000_000_000


class Port:
    """One serial port: bytes in, messages out. Pure but for the socket it carries."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.noise: collections.deque[bytes] = collections.deque(maxlen=20)
        """The last lines that were no messages: of a kernel that says something on every port, for one."""
        self._unread = b""

    def take(self, data: bytes, at_ns: int) -> list[Heard]:
        """The messages that are complete with these bytes."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        heard = []
        for line in lines:
            message = _parse_message(line)
            if message is not None:
                heard.append(Heard(at_ns, message))
            elif line.strip():
                self.noise.append(line)
        return heard


class Channel:
    """The ports of one guest. ``explain_end`` says why it ended, for the error's message."""

    def __init__(
        self,
        agent: socket.socket,
        probe: socket.socket,
        *,
        explain_end: Callable[[], str],
        silence_limit_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._agent = Port(agent)
        self._ports = {port.connection.fileno(): port for port in (self._agent, Port(probe))}
        self._explain_end = explain_end
        self._silence_limit_s = silence_limit_s
        self._last_byte_ns = time.monotonic_ns()
        self._heard: collections.deque[Heard] = collections.deque()
        self._poll = select.poll()
        for descriptor in self._ports:
            self._poll.register(descriptor, select.POLLIN)
        self._last_id = 0

    def send(self, command: Mapping[str, Any]) -> None:
        """Say a command to the agent.

        Raises:
            GuestLostError: The guest has ended, or takes no bytes any more.
        """
        data = json.dumps(command).encode() + b"\n"
        connection = self._agent.connection
        connection.settimeout(self._silence_limit_s)
        try:
            connection.sendall(data)
        except OSError as error:
            raise GuestLostError(self._explain_end()) from error
        finally:
            connection.setblocking(False)

    def hear(self, timeout_s: float) -> Heard | None:
        """The next message of either port; None when there is none in that time.

        Raises:
            GuestLostError: The guest has ended, or was silent for too long.
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * _NS)
        while not self._heard:
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns < 0:
                return None
            self._read_ports(min(left_ns / 1e6, 1000.0))
            silent_s = (time.monotonic_ns() - self._last_byte_ns) / _NS
            if not self._heard and silent_s > self._silence_limit_s:
                message = f"nothing was heard for {silent_s:.0f} s; {self._explain_end()}"
                raise GuestLostError(message)
        return self._heard.popleft()

    def ask(self, word: str, *, patience_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
        """Say a command and wait for its answer; what else is heard meanwhile is kept for ``hear``.

        Raises:
            RefusedError: The agent could not do it.
            GuestLostError: The guest has ended, or has not answered in time.
        """
        # Negative, so that they never are the numbers of whoever uses ``send``.
        self._last_id -= 1
        number = self._last_id
        self.send({"id": number, "do": word, **arguments})
        others = []
        deadline_ns = time.monotonic_ns() + int(patience_s * _NS)
        try:
            while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
                heard = self.hear(left_ns / _NS)
                if heard is None:
                    break
                if heard.message.get("event") == "answer" and heard.message.get("id") == number:
                    return _accepted(word, heard.message)
                others.append(heard)
        finally:
            self._heard.extendleft(reversed(others))
        message = f"no answer to {word} in {patience_s:.0f} s; {self._explain_end()}"
        raise GuestLostError(message)

    def await_event(self, event: str, timeout_s: float) -> Heard:
        """Wait for a message of that kind; what is heard before it is forgotten.

        Raises:
            GuestLostError: It did not come in time, or the guest has ended.
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * _NS)
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            heard = self.hear(left_ns / _NS)
            if heard is not None and heard.message.get("event") == event:
                return heard
        message = f"no {event!r} in {timeout_s:.0f} s; {self._explain_end()}"
        raise GuestLostError(message)

    def _read_ports(self, timeout_ms: float) -> None:
        for descriptor, _ in self._poll.poll(timeout_ms):
            port = self._ports[descriptor]
            try:
                data = port.connection.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            at_ns = time.monotonic_ns()
            if not data:
                raise GuestLostError(self._explain_end())
            self._last_byte_ns = at_ns
            self._heard.extend(port.take(data, at_ns))


def _accepted(word: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    if not answer.get("ok"):
        message = f"{word}: {answer.get('error', 'no reason given')}"
        if answer.get("output"):
            message += f"\n{answer['output']}"
        raise RefusedError(message)
    return dict(answer)


def _parse_message(line: bytes) -> dict[str, Any] | None:
    """A message, or None for anything else: the ports carry nothing that is not an object with an event."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "event" in message else None
