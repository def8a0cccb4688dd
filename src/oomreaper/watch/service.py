"""What the loop calls beside the watcher: parts that want to be woken, by descriptors and a deadline of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Wake(NamedTuple):
    """A descriptor to wait on: ``key`` tells one life of its number from the next, ``mask`` is epoll's."""

    key: object
    mask: int
    on_ready: Callable[[int, int], None]  # what has happened (epoll's mask), when (monotonic ns)


class Service:
    """Something that wants to be called now and then, and may have descriptors of its own."""

    name = "service"  # for people, when it fails

    def wakes(self) -> dict[int, Wake]:
        """Its descriptors."""
        return {}

    def next_deadline_ns(self) -> int | None:
        """When it must be called at the latest."""
        return None

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
