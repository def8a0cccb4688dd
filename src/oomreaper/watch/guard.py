"""What a part that fails costs: itself, for a while. The loop, which must not die, calls its parts through here.

A part is anything that the loop can do without for a moment: a service, the event socket, a hint's descriptor. When
an error comes out of one, it is told (each error once), the part is left alone for a second, then for two, up to
a minute, and then tried again.

What is decided on is not such a part. There an answer of the kernel (OSError, MemoryError) costs the look in which it
was given; any other error is a fault of ours, after which nothing that we remember can be trusted: it comes out of the
loop, and the program ends and says why. Its manager starts it anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SECOND_NS = 1_000_000_000
_FIRST_REST_NS = 1 * _SECOND_NS
_LONGEST_REST_NS = 60 * _SECOND_NS
# A decision that the kernel refused is taken up again after this: at once would be a loop without a pause.
_DECISION_REST_NS = 100_000_000
# Errors that are remembered as told. With more than that, something is wrong that one more line does not explain.
_TOLD_LIMIT = 200
DECISION = "decision"


class Guard:
    """Calls parts, each by a name that people read.

    Args:
        on_trouble: Called with what is wrong, in words, and the time.
    """

    def __init__(self, on_trouble: Callable[[str, int], None]) -> None:
        self._on_trouble = on_trouble
        self._told: set[str] = set()
        self._until_ns: dict[str, int] = {}
        self._rest_ns: dict[str, int] = {}
        self.failures = 0
        self.untold = 0  # errors that could not even be told

    def is_resting(self, part: str, now_ns: int) -> bool:
        """Whether it failed, and is to be left alone for now."""
        return bool(self._until_ns) and self._until_ns.get(part, 0) > now_ns

    def part(self, part: str, now_ns: int, action: Callable[..., object], *operands: object) -> bool:
        """Call a part; whether it went well."""
        try:
            action(*operands)
        except Exception as error:  # noqa: BLE001 - the edge at which whatever a part does wrong stays its own
            rest_ns = self._rest_ns.get(part, _FIRST_REST_NS)
            self._rest_ns[part] = min(2 * rest_ns, _LONGEST_REST_NS)
            self._rest(part, error, now_ns, rest_ns=rest_ns)
            return False
        if self._rest_ns:
            self._rest_ns.pop(part, None)
            self._until_ns.pop(part, None)
        return True

    def decision(self, now_ns: int, action: Callable[..., object], *operands: object) -> bool:
        """Call what decides; whether it went well. A fault of ours comes out."""
        try:
            action(*operands)
        except (OSError, MemoryError) as error:
            self._rest(DECISION, error, now_ns, rest_ns=_DECISION_REST_NS)
            return False
        return True

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """When a part that rests is to be tried again."""
        return min((at for at in self._until_ns.values() if at > now_ns), default=None)

    def _rest(self, part: str, error: Exception, now_ns: int, *, rest_ns: int) -> None:
        self.failures += 1
        self._until_ns[part] = now_ns + rest_ns
        text = f"the {part} failed ({describe(error)}); it is tried again"
        if text in self._told or len(self._told) >= _TOLD_LIMIT:
            return
        self._told.add(text)
        try:
            self._on_trouble(text, now_ns)
        except Exception:  # noqa: BLE001 - what tells is a part too, and there is nobody left to tell of it
            self.untold += 1


def describe(error: BaseException) -> str:
    """An error in one line: what, and where it came from. Reads no source file: there may be no memory for one."""
    lines = trace(error)
    return f"{type(error).__name__}: {error}" + (f", at {lines[-1]}" if lines else "")


def trace(error: BaseException) -> list[str]:
    """Where an error came from, the outermost first."""
    lines = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        lines.append(f"{code.co_filename.rpartition('/')[2]}:{step.tb_lineno} {code.co_qualname}")
        step = step.tb_next
    return lines
