"""The models that the explorer walks through, by name: the founding commit's hand-off and ours, with several casts."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from oomreaper.sim.founding_protocol import FoundingModel
from oomreaper.sim.our_protocol import BY_LEADER, BY_SHARER, OTHER, OurModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oomreaper.sim.explorer import Model

_ALL: tuple[Model, ...] = (
    FoundingModel("founding: one victim exits", ("A",)),
    FoundingModel("founding: one victim, its lock taken", ("A",), locked=("A",)),
    FoundingModel("founding: one stuck victim, its lock taken", ("A",), stuck=("A",), locked=("A",)),
    FoundingModel("founding: woken twice for one", ("A", "A")),
    FoundingModel("founding: a second waker, one victim stuck", ("A", "B"), stuck=("A",), pages=1),
    FoundingModel("founding: a second waker, both exit", ("A", "B"), pages=1),
    OurModel("ours: two victims, one slot", (BY_LEADER, OTHER)),
    OurModel("ours: two victims, two slots", (BY_LEADER, OTHER), slots=2),
    OurModel("ours: one memory by two names", (BY_LEADER, BY_SHARER), slots=2),
    OurModel("ours: a full queue", (BY_LEADER, OTHER), queue_limit=1),
)
MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in _ALL})
