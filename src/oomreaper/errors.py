"""Every error this package raises, in one tree.

::

    OomreaperError
    ├── UsageError      the caller's mistake: an argument that makes no sense          exit status 2
    │   └── ConfigError     a settings file with faults; all of them are in ``faults`` exit status 2
    ├── KernelError     the kernel, the user's rights or the sandbox said no           exit status 3
    └── BrokenPromiseError  our bug: please report it, with the message                exit status 70

The first split is by whose fault it is. A message says what happened, where, and what to do now. A victim
that could not be reaped is no error: it is an ``Outcome`` with its reason.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class OomreaperError(Exception):
    """Any error of this package; ``exit_status`` is what the command ends with."""

    exit_status: ClassVar[int] = 70


class UsageError(OomreaperError):
    """The caller asked for something that makes no sense."""

    exit_status = 2


class Fault(NamedTuple):
    """One thing that is wrong in a settings file, as its own text: what a person types is shown, never obeyed.

    ``key`` is the path to it, as ``rule[2].when[0]``; empty for the file as a whole. ``line`` counts from 1, None when
    it is not known. ``found`` is what stands there, ``allowed`` what may, ``suggestion`` the word that was meant
    (both empty where there is none).
    """

    file: str
    key: str
    line: int | None
    found: str
    allowed: str
    suggestion: str = ""

    @property
    def text(self) -> str:
        """The fault in one line: where, what was found, what is allowed, what was meant."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        what = "; ".join(part for part in (self.found, self.allowed) if part)
        meant = f'; did you mean "{self.suggestion}"?' if self.suggestion else ""
        return ": ".join(part for part in (where, self.key, what + meant) if part)


class ConfigError(UsageError):
    """A settings file that cannot be used. ``faults`` has everything that is wrong with it, in the file's order."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(fault.text for fault in faults))
        self.faults = faults


class KernelError(OomreaperError):
    """The kernel, the user's rights or the sandbox do not permit what was asked."""

    exit_status = 3


class BrokenPromiseError(OomreaperError):
    """A promise that this package makes to itself was broken. Please report it."""

    exit_status = 70
