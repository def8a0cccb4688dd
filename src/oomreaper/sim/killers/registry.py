"""The killers by name, and the parameters of their time."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from oomreaper.sim.killer import NoKiller
from oomreaper.sim.killers.founding import FoundingReaper
from oomreaper.sim.killers.later import LaterReaper
from oomreaper.sim.killers.oom_killer import OomKiller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oomreaper.sim.killer import Killer
    from oomreaper.sim.parameters import Parameters

KILLERS: Mapping[str, Callable[[], Killer]] = MappingProxyType(
    {"none": NoKiller, "oom_killer": OomKiller, "founding": FoundingReaper, "later": LaterReaper}
)
# The kernels of 2016: exit_mmap unmapped without mmap_lock, and a victim might use all of the reserves.
_OF_2016 = ("oom_killer", "founding")


def make_killer(name: str) -> Killer:
    """A new one, for one machine.

    Raises:
        KeyError: There is none of that name.
    """
    return KILLERS[name]()


def parameters_of(name: str, parameters: Parameters) -> Parameters:
    """What was different at that killer's time."""
    if name in _OF_2016:
        return parameters._replace(is_exit_locked=False, reserve_part=1.0)
    return parameters
