"""A settings file as text: read with care, parsed, and where in it a key stands.

Knows files and TOML, and no settings. A file that is none (a directory, a device, 2 GiB of something) is refused
before it is read. The lines are found by looking at the text for headers and keys: cheap, and good enough to lead an
editor there; a key that is hidden inside a multi-line string may mislead it, and then only the number is wrong.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.config.values import show_text
from oomreaper.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

# No settings file is longer; whoever gives us a core dump or /dev/zero is told so and not read.
LARGEST_FILE_BYTES = 1 << 20
_HEADER = re.compile(r"\s*\[(\[)?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*(?:\.\s*["']?([\w-]+)["']?\s*)?=""")


class Source(NamedTuple):
    """A parsed file. ``others_may_write``: who else than its owner and root could change it, in words; or empty."""

    file: str
    document: Mapping[str, object]
    lines: Mapping[tuple[str | int, ...], int]
    text_lines: tuple[str, ...]
    others_may_write: str = ""

    def find_line(self, path: tuple[str | int, ...], found: object) -> int | None:
        """The line of a key path, counted from 1; None when it cannot be told."""
        for length in range(len(path), 0, -1):
            start = self.lines.get(path[:length])
            if start is None:
                continue
            if length < len(path) and isinstance(found, str) and found:
                # An element of a list: it may stand some lines below its key.
                ends = [line for line in self.lines.values() if line > start]
                for line in range(start, min(ends, default=len(self.text_lines) + 1)):
                    if found in self.text_lines[line - 1]:
                        return line
            return start
        return None


def read_source(path: str) -> Source:
    """Read and parse a file.

    Raises:
        ConfigError: It cannot be read, or is no TOML; one fault that says why, with the line where TOML has one.
    """
    file = show_text(os.fsdecode(os.fsencode(path)))
    raw, others = read_file(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fault = Fault(file, "", line, f"found the byte 0x{raw[error.start]:02x}", "TOML is written in UTF-8")
        raise ConfigError((fault,)) from error
    return parse_source(text, file, others_may_write=others)


def parse_source(text: str, file: str, *, others_may_write: str = "") -> Source:
    """Parse the text of a file.

    Raises:
        ConfigError: It is no TOML.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((_tell_syntax(str(error), text, file),)) from error
    except RecursionError as error:
        raise ConfigError(
            (Fault(file, "", None, "found brackets in brackets without end", "TOML, nested a little"),)
        ) from error
    lines = text.splitlines()
    return Source(file, document, _find_keys(lines), tuple(lines), others_may_write)


def read_file(path: str) -> tuple[bytes, str]:
    """The bytes of a regular file of bounded size, and who else than its owner may write to it.

    Raises:
        ConfigError: It cannot be read.
    """
    file = show_text(os.fsdecode(os.fsencode(path)))
    try:
        # Non-blocking: a FIFO that nobody writes to would never open.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError((Fault(file, "", None, f"it cannot be read: {reason}", ""),)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ConfigError((Fault(file, "", None, f"it is {what}", "allowed is a file"),))
        raw = _read_at_most(descriptor, LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError((Fault(file, "", None, f"it cannot be read: {error.strerror}", ""),)) from error
    finally:
        os.close(descriptor)
    if len(raw) > LARGEST_FILE_BYTES:
        fault = Fault(file, "", None, f"it is longer than {LARGEST_FILE_BYTES >> 20} MiB", "no settings file is")
        raise ConfigError((fault,))
    return raw, _tell_writers(status)


def _read_at_most(descriptor: int, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    room = most_bytes
    while room > 0 and (part := os.read(descriptor, room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def _tell_writers(status: os.stat_result) -> str:
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}, who can change it"
    if status.st_mode & stat.S_IWOTH:
        return "everybody can write to it"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"group {status.st_gid} can write to it"
    return ""


def _tell_syntax(message: str, text: str, file: str) -> Fault:
    place = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    what = show_text(message[: place.start()] if place else message)
    if place is None:
        return Fault(file, "", None, "it is no TOML", what)
    if place[1] is None:
        return Fault(file, "", max(1, len(text.splitlines())), "it is no TOML (at its end)", what)
    return Fault(file, "", int(place[1]), f"it is no TOML (column {place[2]})", what)


def _find_keys(lines: list[str]) -> dict[tuple[str | int, ...], int]:
    """The line of each header and key."""
    found: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    here: tuple[str | int, ...] = ()
    for number, line in enumerate(lines, start=1):
        header = _HEADER.match(line)
        if header is not None:
            parts = [part.strip().strip("\"'") for part in header[2].split(".")]
            here = tuple(parts)
            if header[1]:
                position = counts.get(header[2], 0)
                counts[header[2]] = position + 1
                found.setdefault(here, number)
                here = (*here, position)
            found.setdefault(here, number)
            continue
        key = _KEY.match(line)
        if key is not None:
            path = (*here, key[1]) if key[2] is None else (*here, key[1], key[2])
            found.setdefault(path, number)
            found.setdefault((*here, key[1]), number)
    return found
