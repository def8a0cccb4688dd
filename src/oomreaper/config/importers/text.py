"""What the importers have in common: files read with care, POSIX patterns, numbers and times as we write them."""

from __future__ import annotations

import re

from oomreaper.config.source import read_file
from oomreaper.config.values import show_duration

# The classes of POSIX regular expressions, for inside brackets, in ASCII as in the C locale that daemons run in.
_POSIX_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9A-Fa-f",
    "word": r"\w",
}
_NS_OF_SYSTEMD_UNIT = {
    "": 10**9, "s": 10**9, "sec": 10**9, "second": 10**9, "seconds": 10**9, "ms": 10**6, "msec": 10**6,
    "us": 10**3, "usec": 10**3, "m": 60 * 10**9, "min": 60 * 10**9, "minute": 60 * 10**9, "minutes": 60 * 10**9,
    "h": 3600 * 10**9, "hr": 3600 * 10**9, "hour": 3600 * 10**9, "hours": 3600 * 10**9,
}  # fmt: skip


def read_text_file(path: str) -> str:
    """The text of a regular file of bounded size; bytes that are no UTF-8 are replaced.

    Raises:
        ConfigError: It cannot be read.
    """
    return read_file(path)[0].decode("utf-8", "replace")


def convert_posix_regex(pattern: str) -> tuple[str, str]:
    """An extended regular expression of POSIX as one of Python's; and what stands against it, or an empty text."""
    problems = []
    if re.search(r"\[[.=]", pattern):
        problems.append("it uses collating elements ([.x.] or [=x=]), which Python's re does not know")

    def replace(match: re.Match[str]) -> str:
        inside = _POSIX_CLASSES.get(match[1])
        if inside is None:
            problems.append(f"it uses the class [:{match[1]}:], which there is none of")
            return ""
        return inside

    converted = re.sub(r"\[:(\w+):\]", replace, pattern)
    # The ends of words, as glibc spells them.
    converted = re.sub(r"(?<!\\)((?:\\\\)*)\\[<>]", r"\1\\b", converted)
    return converted, "; ".join(problems)


def show_number(number: float) -> str:
    """A number without needless digits, and never as a power of ten."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def convert_time_span(text: str) -> str | None:
    """A span of systemd.time(7), as ``1min 30s``, in our words; None when it is none."""
    total_ns = 0
    rest = text.strip()
    if not rest:
        return None
    while rest:
        match = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", rest)
        if match is None or match[2] not in _NS_OF_SYSTEMD_UNIT:
            return None
        total_ns += round(float(match[1]) * _NS_OF_SYSTEMD_UNIT[match[2]])
        rest = rest[match.end() :]
    return show_duration(total_ns)


def convert_share(text: str) -> float | None:
    """A share of systemd (per cent, per mille, per ten thousand) in per cent; None when it is none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([%\u2030\u2031])", text.strip())
    if match is None:
        return None
    share = float(match[1]) / {"%": 1, "\u2030": 10, "\u2031": 100}[match[2]]
    return share if share <= 100 else None  # noqa: PLR2004 - per cent
