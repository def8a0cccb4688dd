"""To talk with a guest's agent: a command and its answer, while everything else that is heard goes where it belongs.

Nothing waits but ``hear`` of the guest, and that never for longer than a twentieth of a second, so that the host's own
stalls are seen: a turn that took longer than it was told to is one, and the longest is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lab.seam import Guest, Heard

NS = 1_000_000_000
_TURN_S = 0.05
_TURN_NS = 50_000_000


class RefusedError(Exception):
    """The agent said no, or did not say anything in time: the run cannot be set up."""


class Talk:
    """One guest, listened to.

    Args:
        guest: Who talks.
        on_heard: Takes every message that is no answer.
        now_ns: The host's monotonic clock, by which the guest stamps what it heard, too.
    """

    def __init__(self, guest: Guest, on_heard: Callable[[Heard], None], now_ns: Callable[[], int]) -> None:
        self._guest = guest
        self._on_heard = on_heard
        self.now_ns = now_ns
        self._last_id = 0
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._turned_ns: int | None = None
        self.longest_pause_ns = 0
        """The longest time in which this host did not look, since ``forget_pauses``."""

    def send(self, do: str, **arguments: Any) -> int:
        """Say a command and wait for nothing; its number."""
        self._last_id += 1
        self._guest.send({"id": self._last_id, "do": do, **arguments})
        return self._last_id

    def ask(self, do: str, *, within_s: float = 30.0, **arguments: Any) -> Mapping[str, Any]:
        """Say a command and wait for its answer.

        Raises:
            RefusedError: It is no, or does not come in time.
            GuestLostError: The guest has ended.
        """
        number = self.send(do, **arguments)
        self.listen(self.now_ns() + int(within_s * NS), lambda: number in self._answers)
        return self.take_answer(number, do)

    def has_answered(self, number: int) -> bool:
        """Whether the answer to a command that was sent has come."""
        return number in self._answers

    def take_answer(self, number: int, do: str) -> Mapping[str, Any]:
        """The answer to a command that was sent; raises as ``ask``."""
        answer = self._answers.pop(number, None)
        if answer is None:
            raise RefusedError(f"{do}: the agent does not answer")
        if not answer.get("ok"):
            raise RefusedError(f"{do}: {answer.get('error', 'no')}")
        return answer

    def listen(self, until_ns: int, is_enough: Callable[[], bool] = bool) -> bool:
        """Take what is said until then, or until it is enough; whether it was.

        Raises:
            GuestLostError: The guest has ended.
        """
        while not is_enough():
            before_ns = self.now_ns()
            left_ns = until_ns - before_ns
            if left_ns <= 0:
                return False
            heard = self._guest.hear(min(_TURN_S, left_ns / NS))
            self._note_pause(before_ns)
            if heard is None:
                continue
            if heard.message.get("event") == "answer":
                self._answers[int(heard.message["id"])] = heard.message
            else:
                self._on_heard(heard)
        return True

    def forget_pauses(self) -> None:
        """What comes from here on is what counts."""
        self.longest_pause_ns = 0
        self._turned_ns = None

    def _note_pause(self, before_ns: int) -> None:
        now_ns = self.now_ns()
        late_ns = now_ns - (before_ns if self._turned_ns is None else self._turned_ns) - _TURN_NS
        self.longest_pause_ns = max(self.longest_pause_ns, late_ns)
        self._turned_ns = now_ns
