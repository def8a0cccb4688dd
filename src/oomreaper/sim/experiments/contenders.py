"""Who is to get the memory back: the kernel's killers of three ages, and ours. By name, as ``--killer`` takes them.

The kernel's come with what their kernels did otherwise (``killers.registry``). Ours runs on a machine whose kernel
kills nobody, so that what is done is its own; in life both are there.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from oomreaper.errors import KernelError, UsageError

OURS = "ours"


class Contender(NamedTuple):
    """One: its name, and what it is."""

    name: str
    about: str


CONTENDERS: tuple[Contender, ...] = (
    Contender("none", "nobody is killed"),
    Contender("oom_killer", "the kernel's OOM killer before 2016: kills one and waits for its exit"),
    Contender("founding", "the founding commit: the same, and a reaper with one slot, trylock, ten attempts"),
    Contender("later", "the kernel of today: a queue, and the next victim when one is reaped or given up"),
    Contender(OURS, "oomreaper: the watcher, its policy and its reaper, from user space"),
)
NAMES: tuple[str, ...] = tuple(contender.name for contender in CONTENDERS)


def find_contender(name: str) -> Contender:
    """By its name.

    Raises:
        UsageError: There is none.
    """
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise UsageError(f"there is no killer {name!r}; known are {', '.join(NAMES)}")


def need_greenlet() -> None:
    """Our own code runs in greenlets on the model.

    Raises:
        KernelError: The library is not installed.
    """
    try:
        importlib.import_module("greenlet")
    except ImportError as error:
        raise KernelError(
            "the simulator needs the library greenlet; install it with: pip install 'oomreaper[simulate]'"
        ) from error
