"""How one victim ended: the record that ``oomreaper reap`` prints and ``oomreaper.reap()`` returns."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.process import ThreadReport

if TYPE_CHECKING:
    from collections.abc import Mapping


class OutcomeKind(enum.StrEnum):
    """The six ways a victim can end; what each means is in MEANING."""

    REAPED = "reaped"
    EXITED = "exited"
    LOST = "lost"
    UNREAPABLE = "unreapable"
    REFUSED = "refused"
    GONE = "gone"

    @property
    def is_success(self) -> bool:
        """Whether the memory came back."""
        return self in (OutcomeKind.REAPED, OutcomeKind.EXITED)


# In the words of the contract; the manual page is made from it and the README is checked against it.
MEANING: Mapping[OutcomeKind, str] = MappingProxyType(
    {
        OutcomeKind.REAPED: "its memory is verified back, whether or not the process has gone",
        OutcomeKind.EXITED: "it went, and its memory with it",
        OutcomeKind.LOST: "its address space is detached, but its memory did not return: somebody pins it",
        OutcomeKind.UNREAPABLE: "the budget is spent, and the memory is still held",
        OutcomeKind.REFUSED: "a protected or impossible target; nothing was signalled",
        OutcomeKind.GONE: "there is no such process (any more)",
    }
)


_SHORT_ESCAPES: Mapping[str, str] = MappingProxyType({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
_HIGHEST_BYTE, _HIGHEST_BMP = 0xFF, 0xFFFF


class Outcome(NamedTuple):
    """The record of one victim. Sizes in bytes, times as their names say; None where it does not apply.

    ``elapsed_ms`` runs from the signal to memory verified back (or to giving up). ``sharers`` lists the
    pids that shared the address space and were killed with it. ``kind`` is None for a dry run that would have
    killed. ``needs_permission`` marks an end that
    other rights or another kernel would have changed: exit status 3. ``threads`` is the give-up report.
    """

    pid: int
    start_time_ticks: int | None
    comm: bytes | None
    kind: OutcomeKind | None
    anon_before_bytes: int | None = None
    freed_bytes: int | None = None
    elapsed_ms: float | None = None
    attempts: int = 0
    still_dying: bool = False
    sharers: tuple[int, ...] = ()
    reason: str = ""
    needs_permission: bool = False
    threads: tuple[ThreadReport, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The record of the contract as plain values; comm decoded with escapes, never raw."""
        record: dict[str, object] = {
            "pid": self.pid,
            "start_time_ticks": self.start_time_ticks,
            "comm": None if self.comm is None else printable(self.comm),
            "outcome": None if self.kind is None else self.kind.value,
            "anon_before_bytes": self.anon_before_bytes,
            "freed_bytes": self.freed_bytes,
            "elapsed_ms": None if self.elapsed_ms is None else round(self.elapsed_ms, 3),
            "attempts": self.attempts,
            "still_dying": self.still_dying,
            "sharers": list(self.sharers),
            "reason": self.reason,
        }
        if self.threads:
            record["threads"] = [
                {
                    "tid": thread.tid,
                    "comm": printable(thread.comm),
                    "state": thread.state,
                    "wchan": thread.wchan,
                    "syscall": thread.syscall,
                    "stack": list(thread.stack),
                }
                for thread in self.threads
            ]
        return record


def printable(raw: bytes) -> str:
    r"""A name out of the kernel made safe to show: control characters and invalid UTF-8 become \\xNN."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    """As Python writes it. Without the codec of that name: it is imported from disk when it is first used."""
    code = ord(char)
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    return f"\\x{code:02x}" if code <= _HIGHEST_BYTE else f"\\u{code:04x}" if code <= _HIGHEST_BMP else f"\\U{code:08x}"
