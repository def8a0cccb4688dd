"""What this kernel, user and sandbox permit: each feature asked for, never guessed from a version.

How it works: the system calls are asked in a small process of their own (``prober``), started by
``interview``; everything else is read from /proc and /sys. The ``describe_*`` functions turn answers and
files into a ``Feature``: its state, what is lost without it, and the remedy. They decide nothing else, so
a recorded tree or a made-up answer tests them.

The modules, by what they look at: ``calls`` (the system calls of a reap), ``rights`` (capabilities, limits,
seccomp, namespaces), ``procfs``, ``pressure`` (PSI, swap, the kernel's own killer, core dumps), ``groups``
(control groups).

A new feature is one ``describe_*`` function, its line below, and its name in tests/linux/test_features.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oomreaper.model.features import Features


def probe_features(*, proc_root: str = "/proc", sys_root: str = "/sys") -> Features:
    """Look at every feature; nothing is signalled, and nothing is changed that outlives the call.

    Safe in a program with many threads: nothing is forked off the caller (see ``interview``). Takes about
    a tenth of a second, ten seconds at the very most. What cannot be known is reported as such, not raised.

    Args:
        proc_root: Where procfs is, or a recorded copy of one.
        sys_root: Where sysfs is, with the control groups at fs/cgroup, or a recorded copy.
    """
    # Here, not above: whoever imports the package for ``reap`` does not pay for this.
    import os

    from oomreaper.linux.features import calls, groups, pressure, procfs, rights
    from oomreaper.linux.features.interview import interview_kernel
    from oomreaper.linux.features.tree import Tree
    from oomreaper.model.features import Features

    tree = Tree(proc_root, sys_root)
    interview = interview_kernel(proc_root)
    standing = rights.read_standing(tree, interview.status)
    limits = rights.read_limits(tree)
    cpu_groups = groups.find_groups_without_realtime(tree)
    system = os.uname()
    return Features(
        system.release,
        system.machine,
        (
            calls.describe_process_mrelease(interview, standing),
            calls.describe_pidfd(interview, standing),
            procfs.describe_proc(tree, standing),
            calls.describe_kcmp(interview, standing),
            calls.describe_sched_fifo(interview, standing, limits, cpu_groups),
            calls.describe_mlockall(interview, standing, limits),
            rights.describe_capabilities(standing),
            rights.describe_rlimits(tree, limits),
            rights.describe_seccomp(interview, standing),
            pressure.describe_psi(interview, standing),
            groups.describe_cgroup(tree),
            pressure.describe_swap(tree),
            rights.describe_namespaces(tree),
            pressure.describe_oom_killer(tree),
            pressure.describe_core_pattern(tree),
        ),
    )
