"""The figures, each with how it is measured. A new one is a module with a ``FIGURE``, and a row here."""

from bench.figures import full, healthy, mmap_lock, race, resident, startup, stuck

FIGURES = (healthy.FIGURE, race.FIGURE, stuck.FIGURE, mmap_lock.FIGURE, resident.FIGURE, full.FIGURE, startup.FIGURE)
