"""One value of a settings file, from what TOML made of it to what the plan holds.

Knows the form of each single value and nothing of keys, tables or other values. Each ``read_*`` takes any TOML value
and returns the plan's, or raises WrongValueError with what it found and what is allowed; where that stands in the file
is the caller's to say. Users are looked up here. Conditions, durations and steps are read by the grammar in ``policy``,
which is the only one.

Patterns become regular expressions here, so that the watcher does nothing but search. They are anchored: a pattern
names the whole of what it looks at. ``*`` also stands for slashes, so ``/user.slice/*`` is all that lies below.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from oomreaper.model.plan import MACHINE, KillUnit, Matcher, MatchField, MatchTest
from oomreaper.policy.grammar import ConditionError, parse_condition, parse_duration_ns, parse_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oomreaper.model.plan import Condition, Step

_T = TypeVar("_T")
_SHOWN_CHARACTERS = 60  # of what was found; enough to recognise it, and a line still holds the rest of the fault
_NS_PER_MS, _NS_PER_S = 1_000_000, 1_000_000_000
_HIGHEST_UID = 2**32 - 2  # (uid_t) -1 is no user, setresuid(2)
_UNIX_PATH_BYTES = 107  # sun_path of unix(7) without its NUL
_CONTAINER_ID_CHARACTERS = 64  # a SHA-256 in hexadecimal, as docker, podman and containerd name theirs
_GLOB_CHARACTERS = frozenset("*?[")


class WrongValueError(ValueError):
    """A value that cannot be used: what was found, what is allowed, and what was meant, if that can be guessed."""

    def __init__(self, found: str, allowed: str, suggestion: str = "") -> None:
        super().__init__(found, allowed, suggestion)
        self.found = found
        self.allowed = allowed
        self.suggestion = suggestion


# -- to show and to guess ----------------------------------------------------------------------------------


def show_value(raw: object) -> str:
    """What was found, as one would write it in TOML, cut off and safe to print."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | float):
        return str(raw)
    if isinstance(raw, str):
        cut = raw if len(raw) <= _SHOWN_CHARACTERS else raw[: _SHOWN_CHARACTERS - 2] + ".."
        return f'"{show_text(cut)}"'
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, list | tuple):
        return "a list" if raw else "an empty list"
    return "a date or time"


def show_text(text: str) -> str:
    """Text out of a file with all that a terminal could obey made visible."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def show_path(path: Iterable[str | int]) -> str:
    """A key path as people write it: ``rule[2].when[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{show_text(part)}" if text else show_text(part)
    return text


def guess_word(word: str, known: Iterable[str]) -> str:
    """The known word that is nearest; empty when none is near."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1)
    return matches[0] if matches else ""


def _refuse_type(raw: object, allowed: str) -> WrongValueError:
    return WrongValueError(f"found {show_value(raw)}", f"allowed is {allowed}")


def _read_text(raw: object, allowed: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise _refuse_type(raw, allowed)
    if "\0" in raw:
        raise WrongValueError(f"found {show_value(raw)}", "a NUL character can be part of no name or path")
    return raw


# -- numbers, words, flags ---------------------------------------------------------------------------------


def read_flag(raw: object) -> bool:
    """True or false."""
    if not isinstance(raw, bool):
        raise _refuse_type(raw, "true or false, without quotes")
    return raw


def read_count(smallest: int, largest: int) -> Callable[[object], int]:
    """A reader of whole numbers from ``smallest`` to ``largest``."""

    def read(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int) or not smallest <= raw <= largest:
            raise _refuse_type(raw, f"a whole number from {smallest} to {largest}")
        return raw

    return read


def read_percent(raw: object) -> float:
    """A share as ``"1%"``; from 0 to 100."""
    allowed = 'a share from "0%" to "100%"'
    text = _read_text(raw, allowed)
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*", text)
    if match is None or float(match[1]) > 100:  # noqa: PLR2004 - per cent
        raise _refuse_type(raw, allowed)
    return float(match[1])


def read_choice(*words: str) -> Callable[[object], str]:
    """A reader of one of ``words``."""

    def read(raw: object) -> str:
        if not isinstance(raw, str) or raw not in words:
            suggestion = guess_word(raw, words) if isinstance(raw, str) else ""
            allowed = " or ".join(f'"{word}"' for word in words)
            raise WrongValueError(f"found {show_value(raw)}", f"allowed is {allowed}", suggestion)
        return raw

    return read


def read_kill_unit(raw: object) -> KillUnit:
    """What dies together."""
    return KillUnit(read_choice(*(unit.value for unit in KillUnit))(raw))


def read_duration(smallest_ns: int, largest_ns: int) -> Callable[[object], int]:
    """A reader of durations such as ``"100ms"``, into ns."""

    def read(raw: object) -> int:
        allowed = f'a time from "{show_duration(smallest_ns)}" to "{show_duration(largest_ns)}"'
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            raise WrongValueError(f"found {show_value(raw)}, without a unit", f"allowed is {allowed}", f"{raw}s")
        duration_ns = _parse(parse_duration_ns, raw, allowed)
        if not smallest_ns <= duration_ns <= largest_ns:
            raise _refuse_type(raw, allowed)
        return duration_ns

    return read


def show_duration(duration_ns: int) -> str:
    """A duration as it may be written in the file, in the largest unit that is whole."""
    for unit, unit_ns in (("h", 3600 * _NS_PER_S), ("min", 60 * _NS_PER_S), ("s", _NS_PER_S), ("ms", _NS_PER_MS)):
        if duration_ns and duration_ns % unit_ns == 0:
            return f"{duration_ns // unit_ns}{unit}"
    return "0s" if duration_ns == 0 else f"{duration_ns / _NS_PER_S:g}s"


# -- what the grammar reads --------------------------------------------------------------------------------


def read_condition(raw: object) -> Condition:
    """A condition, as ``"mem_available < 4%"``."""
    return _parse(parse_condition, raw, 'a condition, as "mem_available < 4%"')


def read_recovery(raw: object) -> Condition:
    """A condition that tells the end of a shortage, as ``"mem_available > 8%"``."""
    return _parse(partial(parse_condition, is_recovery=True), raw, 'a condition, as "mem_available > 8%"')


def read_step(raw: object) -> Step:
    """A step of a ladder, as ``"kill after 10s"``."""
    return _parse(parse_step, raw, 'a step, as "kill after 10s"')


def _parse(parse: Callable[[str], _T], raw: object, allowed: str) -> _T:
    text = _read_text(raw, allowed)
    try:
        return parse(text)
    except ConditionError as error:
        # The grammar says what it found, what is allowed, and what was meant.
        raise WrongValueError(f"found {show_value(raw)}", show_text(str(error))) from error


# -- names, paths, programs --------------------------------------------------------------------------------


def read_name(raw: object) -> str:
    """A rule's name: what events and ``explain`` call it."""
    allowed = "a name of at most 64 letters, digits and . _ -"
    text = _read_text(raw, allowed)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise _refuse_type(raw, allowed)
    return text


def read_scope(raw: object) -> str:
    """``machine``, or a glob over cgroup paths."""
    allowed = '"machine", or a pattern over cgroup paths, which begins with / or *'
    text = _read_text(raw, allowed)
    if text != MACHINE and text[0] not in "/*":
        raise WrongValueError(f"found {show_value(raw)}", f"allowed is {allowed}", guess_word(text, [MACHINE]))
    return text


def read_cgroup_path(raw: object) -> str | None:
    """A cgroup's path below the root of its tree; None for the empty text."""
    if raw == "":
        return None
    allowed = 'the path of a cgroup, as in /proc/PID/cgroup ("/system.slice/ci.service"), or "" for the machine'
    text = _read_text(raw, allowed)
    if not text.startswith("/") or text.startswith("/sys/fs/cgroup") or ".." in text.split("/"):
        raise _refuse_type(raw, allowed)
    return text.rstrip("/") or "/"


def read_socket_path(raw: object) -> str | bool:
    """Where the events go: true for the usual place, false for nowhere, or an absolute path."""
    if isinstance(raw, bool):
        return raw
    allowed = f"true, false, or an absolute path of at most {_UNIX_PATH_BYTES} bytes"
    text = _read_text(raw, allowed)
    if not text.startswith("/") or len(text.encode()) > _UNIX_PATH_BYTES:
        raise _refuse_type(raw, allowed)
    return text


def read_word_of_command(raw: object) -> str:
    """The program or an argument of a hook; an argument may be empty."""
    if raw == "":
        return ""
    return _read_text(raw, "a text; each argument is one of its own, there is no shell")


# -- matchers ----------------------------------------------------------------------------------------------


def read_pattern(field: MatchField) -> Callable[[object], MatchTest]:
    """A reader of a glob over ``field``."""

    def read(raw: object) -> MatchTest:
        text = _read_text(raw, "a pattern: the whole name, with * for any characters and ? for one")
        return MatchTest(field, compile_glob(field, text), f"{field.value} = {show_text(text)}")

    return read


def read_regex(field: MatchField) -> Callable[[object], MatchTest]:
    """A reader of a regular expression that is searched for in ``field``."""

    def read(raw: object) -> MatchTest:
        text = _read_text(raw, "a regular expression")
        try:
            with warnings.catch_warnings():
                # What re only warns of is not what was meant either: "[[:alpha:]]" is no class of letters here.
                warnings.simplefilter("error")
                re.compile(text)
        except (re.error, Warning, RecursionError, OverflowError) as error:
            why = f"no regular expression as Python's re reads it: {error}"
            raise WrongValueError(f"found {show_value(raw)}", show_text(why)) from error
        return MatchTest(field, text, f"{field.value}_regex = {show_text(text)}")

    return read


def read_user(raw: object) -> MatchTest:
    """A user's name or number; the plan holds the number."""
    import pwd

    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    text = _read_text(raw, "a user's name or number")
    if text.isascii() and text.isdigit():
        if int(text) > _HIGHEST_UID:
            raise _refuse_type(raw, f"a user's name, or a number up to {_HIGHEST_UID}")
        uid = int(text)
    else:
        try:
            uid = pwd.getpwnam(text).pw_uid
        except (KeyError, UnicodeError):
            suggestion = guess_word(text, (entry.pw_name for entry in pwd.getpwall()))
            allowed = "this machine knows no such user; a number is taken as it is"
            raise WrongValueError(f"found {show_value(raw)}", allowed, suggestion) from None
    return MatchTest(MatchField.USER, rf"\A{uid}\Z", f"user = {show_text(text)}")


def make_matcher(tests: object) -> Matcher:
    """A matcher from its table, in which each value is a MatchTest already."""
    assert isinstance(tests, dict)
    if not tests:
        raise WrongValueError("found an empty table, which would match every process", "name at least one key")
    return Matcher(tuple(tests.values()))


def compile_glob(field: MatchField, pattern: str) -> str:
    """A glob as a regular expression for re.search; what is convenient about each field is told in the manual page."""
    is_plain = not _GLOB_CHARACTERS & set(pattern)
    if field is MatchField.UNIT and is_plain and "." not in pattern:
        pattern += ".service"
    if field is MatchField.CONTAINER and re.fullmatch(r"[0-9a-f]{6,}", pattern):
        pattern += "*" if len(pattern) < _CONTAINER_ID_CHARACTERS else ""
    # fnmatch anchors the end, and we the start. A program's name without a slash is the last part of its path.
    is_name_of_program = field is MatchField.EXE and "/" not in pattern
    return (r"(?:\A|/)(?=[^/]*\Z)" if is_name_of_program else r"\A") + fnmatch.translate(pattern)
