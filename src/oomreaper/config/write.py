"""Settings as TOML text: the defaults, and what an import made. What is written here is read by ``load`` again.

Python reads TOML but does not write it; the values of our settings are texts, numbers, lists and small tables.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from oomreaper.config.defaults import RULES
from oomreaper.config.settings import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from oomreaper.config.settings import Table

_COLUMNS = 100  # of the files that we write: two of them still stand side by side on most screens
_SHORT_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_LAST_OF_FOUR_DIGITS = 0xFFFF


def write_value(value: object) -> str:
    """One value.

    Raises:
        ValueError: TOML has no way to write it (half of a surrogate pair).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f'"{"".join(map(_escape, value))}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {write_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write_value, value))}]"
    raise TypeError(f"{value!r} is no value of a setting")


def write_setting(key: str, value: object) -> Iterator[str]:
    """One setting in a line, or a long list in a line for each element."""
    line = f"{key} = {write_value(value)}"
    if len(line) <= _COLUMNS or not isinstance(value, list | tuple):
        yield line
        return
    yield f"{key} = ["
    for element in value:
        yield f"  {write_value(element)},"
    yield "]"


def write_comment(text: str) -> Iterator[str]:
    """A comment, however long; no text can end it, since line breaks and the like become spaces."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    for line in textwrap.wrap(flat, _COLUMNS - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def write_table(header: str, table: Mapping[str, object], comments: Iterable[str] = ()) -> Iterator[str]:
    """One table with what is to be said about it above."""
    for comment in comments:
        yield from write_comment(comment)
    yield header
    for key, value in table.items():
        yield from write_setting(key, value)


def write_defaults() -> str:
    """A settings file that says what holds without one: every setting with its default and what it means."""
    lines = [*write_comment("What holds without a settings file, in the form of one; oomreaper.toml(5) says more."), ""]
    for table in TABLES:
        lines += [*write_comment(table.meaning), ""] if table.is_array else write_comment(table.meaning)
        if not table.is_array:
            lines += [*_write_described(table), ""]
            continue
        for rule in RULES:
            lines += [*write_table(table.header, rule.table, (rule.why,)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _write_described(table: Table) -> Iterator[str]:
    yield table.header
    for setting in table.settings:
        yield from write_comment(setting.meaning)
        yield from write_setting(setting.key, setting.default)


def _escape(char: str) -> str:
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if "\ud800" <= char <= "\udfff":
        raise ValueError("a byte that is no UTF-8 cannot stand in TOML")
    return f"\\u{code:04x}" if code <= _LAST_OF_FOUR_DIGITS else f"\\U{code:08x}"
