"""What a machine permits, feature by feature; what ``oomreaper doctor`` shows."""

from __future__ import annotations

import enum
from typing import NamedTuple


class FeatureState(enum.StrEnum):
    """How much of a feature there is."""

    AVAILABLE = "available"
    LIMITED = "limited"  # works, with less than it could be
    MISSING = "missing"  # the kernel has it not, or not here
    FORBIDDEN = "forbidden"  # the kernel has it; this user or sandbox may not use it


class Feature(NamedTuple):
    """One feature: its state, what was found, what is lost without it, and what to do about it.

    ``lost`` and ``remedy`` are empty when nothing is lost. ``is_needed`` marks what a reap cannot do without.
    """

    name: str
    state: FeatureState
    found: str
    lost: str = ""
    remedy: str = ""
    is_needed: bool = False


class Features(NamedTuple):
    """Every feature that was looked at, in the order in which a reap needs them."""

    kernel_release: str
    machine: str
    items: tuple[Feature, ...]

    def find(self, name: str) -> Feature:
        """Return the feature of that name; KeyError when it was not looked at.

        A method, not ``features[name]``: a type checker takes that for the tuple's own.
        """
        for item in self.items:
            if item.name == name:
                return item
        raise KeyError(name)

    @property
    def can_reap(self) -> bool:
        """Whether a victim can be killed and its memory freed here."""
        return all(
            item.state in (FeatureState.AVAILABLE, FeatureState.LIMITED) for item in self.items if item.is_needed
        )
