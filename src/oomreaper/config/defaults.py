"""The rules that are in force when no file has any, and why they are these.

They are written as a user would write them and read by the same readers; ``oomreaper check --print-defaults`` prints
them. All other defaults stand in the table of ``settings``. The order of purposes decides: a rule that could kill on a
machine that would have recovered by itself is worse than one that acts a moment late.
"""

from __future__ import annotations

from typing import NamedTuple


class DefaultRule(NamedTuple):
    """A rule as a TOML table, and the reason for its numbers."""

    table: dict[str, object]
    why: str


RULES = (
    DefaultRule(
        {
            "name": "low",
            "when": ["mem_available < 4%", "swap_free < 10%"],
            "then": ["terminate", "kill after 10s or mem_available < 2%"],
        },
        "Memory and swap are both nearly used up. There is still time to ask: the victim has ten seconds to save its "
        "work and to go, less when memory keeps falling. With swap to spare the kernel helps itself; see 'thrashing' "
        "for when it does not. 4 % is 640 MiB of 16 GiB, about what a desktop's next browser tab or a compiler takes.",
    ),
    DefaultRule(
        {
            "name": "critical",
            "when": ["mem_available < 2%", "swap_free < 5%"],
            "then": ["kill"],
        },
        "No time to ask. A process that allocates 1 GiB a second is through 2 % of 16 GiB in a third of a second.",
    ),
    DefaultRule(
        {
            "name": "thrashing",
            "when": ["psi_memory_full > 40% over 10s", "mem_available < 20%"],
            "for": "10s",
            "then": ["terminate", "kill after 5s"],
        },
        "For twenty seconds nothing ran during two fifths of the time, because all waited for memory: the machine "
        "is frozen for whoever sits before it, whatever its numbers say. MemAvailable overstates then, so the level "
        "is a wide one; it keeps the rule from answering a slow disk with a kill.",
    ),
    DefaultRule(
        {
            "name": "forecast",
            "when": ["time_to_exhaustion < 2s", "mem_available < 10%", "swap_free < 10%"],
            "then": ["warn"],
        },
        "Two seconds from the end at the present rate: who listens can shed its caches. It only warns, since a rate is "
        "no level; many programs grow fast and stop.",
    ),
    DefaultRule(
        {
            "name": "group",
            "scope": "*",
            "when": ["mem_available < 1%", "swap_free < 10%"],
            "then": ["kill"],
        },
        "A control group (a container, a job, a unit with MemoryMax=) is at its own limit, with nothing but memory in "
        "use left to take, or its tasks hang there already. The kernel would kill within it next, and choose by size "
        "alone. 1 %, and not more, since a program that was given just what it needs may live close to its limit for "
        "ever. There is no SIGTERM: 1 % of a small limit is gone before anybody could answer it.",
    ),
)
