"""The figures, each with how it is measured. A new one is a module with a ``FIGURE``, and a row here.

Those of the watcher are named ``watch-…``; the others are of the reaper and its victims.
"""

from bench.figures import (
    decision,
    footing,
    full,
    healthy,
    idle,
    mmap_lock,
    race,
    reaction,
    resident,
    simulation,
    startup,
    stuck,
)

FIGURES = (
    healthy.FIGURE,
    race.FIGURE,
    stuck.FIGURE,
    mmap_lock.FIGURE,
    resident.FIGURE,
    full.FIGURE,
    startup.FIGURE,
    decision.FIGURE,
    reaction.FIGURE,
    idle.FIGURE,
    footing.FIGURE,
    simulation.FIGURE,
)
