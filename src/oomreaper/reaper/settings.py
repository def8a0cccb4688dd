"""What a crew is told, and what it counts. Pure."""

from __future__ import annotations

from typing import NamedTuple

_MS = 1_000_000


class Settings(NamedTuple):
    """The numbers of the founding commit, and how many hands there are.

    ``timeout_ns`` bounds a victim whose memory still moves; ``spare_dump`` lets a running core dump finish.
    """

    workers: int = 2
    spares: int = 1
    attempts: int = 10
    attempt_ns: int = 100 * _MS
    timeout_ns: int = 30_000 * _MS
    queue_limit: int = 64
    mark_limit: int = 16_384
    spare_dump: bool = False


class Statistics(NamedTuple):
    """Counts since the start."""

    workers_started: int
    workers_lost: int
    workers_idle: int
    victims_taken: int
    victims_waiting: int
    victims_open: int
    attempts: int
