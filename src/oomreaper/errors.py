"""Every error this package raises, in one tree.

::

    OomreaperError
    ├── UsageError      the caller's mistake: an argument that makes no sense          exit status 2
    ├── KernelError     the kernel, the user's rights or the sandbox said no           exit status 3
    └── BrokenPromiseError  our bug: please report it, with the message                exit status 70

The first split is by whose fault it is. A message says what happened, where, and what to do now. A victim
that could not be reaped is no error: it is an ``Outcome`` with its reason.
"""

from __future__ import annotations

from typing import ClassVar


class OomreaperError(Exception):
    """Any error of this package; ``exit_status`` is what the command ends with."""

    exit_status: ClassVar[int] = 70


class UsageError(OomreaperError):
    """The caller asked for something that makes no sense."""

    exit_status = 2


class KernelError(OomreaperError):
    """The kernel, the user's rights or the sandbox do not permit what was asked."""

    exit_status = 3


class BrokenPromiseError(OomreaperError):
    """A promise that this package makes to itself was broken. Please report it."""

    exit_status = 70
