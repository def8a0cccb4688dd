"""The census: who is there and how big, kept warm between looks, so that a decision has its numbers at once.

A scan of every process costs 10 to 20 us each, which is 0.2 s at 10,000 of them, and a shortage does not wait. So the
large ones (the *front*) are read through descriptors that are kept open, at 3 us each, in every look, and the rest
in turn, some at each look. Whoever grows without being seen shows as memory that goes and that nobody in the front
took (``Census.unseen_growth_bytes``): then a sweep finds him.

* ``files``: reading one process: what is opened, what is kept, what each error means
* ``entry``: what is remembered of one process, and what it grew by
* ``front``: which processes are read in every look
* ``table``: those who are known, and how each of them is read
* ``census``: the rounds over all of them

Only ``stat``, ``statm``, ``status`` and ``oom_score_adj`` are read. ``exe``, ``cmdline``, ``maps`` and their like wait
for mmap_lock: one stuck process would stop the watcher. Profiles are found elsewhere and put in.
"""

from __future__ import annotations

from oomreaper.linux.census.census import Census, Statistics

__all__ = ["Census", "Statistics"]
