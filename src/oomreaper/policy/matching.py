"""Matching: which of the user's ``never``, ``avoid`` and ``prefer`` say something about a process. Pure.

What it knows: the compiled patterns, and what it has answered before. What it refuses to know: what follows from an
answer (``ranking``).

* A pattern is searched (re.search) in the text of its field. Bytes of the kernel are hostile: they are decoded with
  surrogateescape, so that no name is beyond matching and none fails.
* comm is what the kernel keeps of a name: 15 bytes. A process sets its own comm and cmdline, so these name friends,
  not foes; exe, user, unit and cgroup are harder to forge.
* A program whose file was replaced (an upgrade) is still that program: " (deleted)" behind exe is not looked at.
* A field that could not be read is *unread*, which is neither a match nor none: the answer names it, and the ranking
  is careful. A process that is known to be in no unit or no container is matched by no pattern on that field.

An answer rests on comm, uid and profile alone, and it is kept under these: no answer can go stale, and a thousand
processes of one name without a profile are asked about once. What the last two rankings did not ask for goes.
A pattern that takes for ever is its writer's own; the census cuts a command line off before it comes here.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, NamedTuple, assert_never

from oomreaper.model.plan import Matcher, MatchField
from oomreaper.policy import belonging

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.model.plan import Victims
    from oomreaper.model.sample import Profile

_DELETED = " (deleted)"  # what d_path() puts behind the name of an unlinked file, fs/d_path.c
# What comes from the profile; the others every sample has.
_OF_PROFILE = frozenset(MatchField) - {MatchField.COMM, MatchField.USER}
_IN_WORDS = {
    MatchField.COMM: "name",
    MatchField.EXE: "program",
    MatchField.CMDLINE: "command line",
    MatchField.USER: "user",
    MatchField.UNIT: "unit",
    MatchField.CGROUP: "control group",
    MatchField.CONTAINER: "container",
}


class _Absent(enum.Enum):
    UNREAD = enum.auto()  # nobody has looked, or it is not ours to see
    NOWHERE = enum.auto()  # it is known to have none


class Finding(NamedTuple):
    """What one list of matchers says. ``text``: the matcher that matched. ``unread``: else, the field that would tell.

    Both None: none of them is about this process.
    """

    text: str | None = None
    unread: MatchField | None = None


class Opinion(NamedTuple):
    """What the user's lists say about one process."""

    never: Finding = Finding()
    avoid: Finding = Finding()
    prefer: Finding = Finding()


SILENT = Opinion()
_NOTHING = Finding()


def words(field: MatchField) -> str:
    """A field's name in a sentence."""
    return _IN_WORDS[field]


def has_need_of_profile(matchers: Iterable[Matcher]) -> bool:
    """Whether any of them looks at more than every sample has."""
    return any(test.field in _OF_PROFILE for matcher in matchers for test in matcher.tests)


class Opinions:
    """The user's lists, compiled once; ``of`` asks them about one process."""

    def __init__(self, victims: Victims) -> None:
        self._never = tuple(_Compiled(matcher) for matcher in victims.never)
        self._avoid = tuple(_Compiled(matcher) for matcher in victims.avoid)
        self._prefer = tuple(_Compiled(matcher) for matcher in victims.prefer)
        self._is_silent = not (self._never or self._avoid or self._prefer)
        self._recent: dict[tuple[bytes, int, Profile | None], Opinion] = {}
        self._former: dict[tuple[bytes, int, Profile | None], Opinion] = {}

    def turn(self) -> None:
        """A ranking begins: what neither the last one nor this one asks for may go."""
        self._former = self._recent
        self._recent = {}

    def of(self, comm: bytes, uid: int, profile: Profile | None) -> Opinion:
        """What the lists say."""
        if self._is_silent:
            return SILENT
        key = (comm, uid, profile)
        opinion = self._recent.get(key)
        if opinion is None:
            opinion = self._former.get(key) or self._form(comm, uid, profile)
            self._recent[key] = opinion
        return opinion

    def __len__(self) -> int:
        return len(self._recent) + len(self._former)

    def _form(self, comm: bytes, uid: int, profile: Profile | None) -> Opinion:
        return Opinion(
            _ask(self._never, comm, uid, profile),
            _ask(self._avoid, comm, uid, profile),
            _ask(self._prefer, comm, uid, profile),
        )


class _Compiled:
    """One matcher. ``text`` is how the user wrote it."""

    def __init__(self, matcher: Matcher) -> None:
        # A matcher without tests would match everybody ("all of nothing"); it means nobody.
        self.tests = tuple((test.field, re.compile(test.regex)) for test in matcher.tests)
        self.text = " and ".join(test.text for test in matcher.tests)

    def find(self, comm: bytes, uid: int, profile: Profile | None) -> Finding:
        """A test that fails settles it; only then does a field that could not be read matter."""
        unread: MatchField | None = None
        for field, pattern in self.tests:
            text = _text_of(field, comm, uid, profile)
            if text is _Absent.UNREAD:
                unread = field
            elif text is _Absent.NOWHERE or pattern.search(text) is None:
                return _NOTHING
        if unread is not None:
            return Finding(unread=unread)
        return Finding(text=self.text) if self.tests else _NOTHING


def _ask(matchers: tuple[_Compiled, ...], comm: bytes, uid: int, profile: Profile | None) -> Finding:
    """The first that matches; else the first that cannot tell."""
    doubt = _NOTHING
    for matcher in matchers:
        finding = matcher.find(comm, uid, profile)
        if finding.text is not None:
            return finding
        if doubt.unread is None:
            doubt = finding
    return doubt


def _text_of(field: MatchField, comm: bytes, uid: int, profile: Profile | None) -> str | _Absent:
    match field:
        case MatchField.COMM:
            return _decoded(comm)
        case MatchField.USER:
            return str(uid)
        case MatchField.EXE:
            exe = None if profile is None else profile.exe
            return _Absent.UNREAD if exe is None else _decoded(exe).removesuffix(_DELETED)
        case MatchField.CMDLINE:
            cmdline = None if profile is None else profile.cmdline
            return _Absent.UNREAD if cmdline is None else _decoded(cmdline)
        case MatchField.CGROUP:
            cgroup = None if profile is None else profile.cgroup
            return _Absent.UNREAD if cgroup is None else cgroup
        case MatchField.UNIT:
            cgroup = None if profile is None else profile.cgroup
            return _Absent.UNREAD if cgroup is None else belonging.unit_of(cgroup) or _Absent.NOWHERE
        case MatchField.CONTAINER:
            cgroup = None if profile is None else profile.cgroup
            return _Absent.UNREAD if cgroup is None else belonging.container_of(cgroup) or _Absent.NOWHERE
        case _:
            assert_never(field)


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
