"""A machine that never was, behind the same seam as ``linux``: the same code under millions of adversarial schedules.

From the inside out: ``choice`` and ``engine`` (steps, time), ``locks``, ``parameters``, ``memory``, ``allocator``,
``groups``, ``pressure``, ``tasks``, ``leaving`` (a task's exit), ``release`` (process_mrelease) and ``machine`` are the
kernel; ``linux/`` is its face to user space; ``userland`` runs our own ordinary code on it, ``hands`` the reaper's
workers, ``watching`` the watcher. ``programs`` and ``scenario`` say what else runs there.
"""
