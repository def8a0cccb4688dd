"""What an import comes to: a file of ours, what was carried over and how, what was not and why.

Nothing is dropped in silence: each importer gives every setting it meets either to ``carry`` or to ``leave``. What is
written is read again by our own loader before anybody sees it, so no import makes a file that we would refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.config.compile import read_trusted
from oomreaper.config.settings import find_table
from oomreaper.config.values import WrongValueError, read_regex, show_text
from oomreaper.config.write import write_comment, write_table, write_value
from oomreaper.errors import BrokenPromiseError, ConfigError
from oomreaper.model.plan import MatchField

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME_CHARACTERS = 56  # of a rule, so that a number still fits behind it


class Carried(NamedTuple):
    """A setting of the peer, and what became of it here; ``note``: how ours differs, or empty."""

    setting: str
    became: str
    note: str = ""


class Left(NamedTuple):
    """A setting of the peer that was not carried over, why, and what to do instead."""

    setting: str
    reason: str
    instead: str = ""


class Imported(NamedTuple):
    """The end of an import. ``rules`` and ``tables`` are TOML tables."""

    peer: str
    sources: tuple[str, ...]
    rules: tuple[dict[str, object], ...]
    tables: dict[str, dict[str, Any]]
    carried: tuple[Carried, ...]
    left: tuple[Left, ...]


class Draft:
    """An import in the making."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._rules: list[dict[str, object]] = []
        self._tables: dict[str, dict[str, Any]] = {}
        self._carried: list[Carried] = []
        self._left: list[Left] = []

    def add_rule(self, **rule: object) -> None:
        """A rule; ``for_`` is its key "for"."""
        keys = ("name", "scope", "when", "for_", "recovered", "then")
        table = {key.rstrip("_"): rule[key] for key in keys if rule.get(key)}
        taken = {other["name"] for other in self._rules}
        if table["name"] in taken:
            table["name"] = f"{str(table['name'])[:_NAME_CHARACTERS]}-{len(self._rules) + 1}"
        if all(self._can_be("rule", key, value, f"rule {table['name']}") for key, value in table.items()):
            self._rules.append(table)

    def set(self, table: str, key: str, value: object) -> None:
        """A setting of ours."""
        if self._can_be(table, key, value, f"{table}.{key}"):
            self._tables.setdefault(table, {})[key] = value

    def _can_be(self, table: str, key: str, value: object, owner: str) -> bool:
        """Whether our own reader takes a value; named as left when not, since the peer allows what we do not."""
        found = find_table(table)
        assert found is not None
        form = next(setting.form for setting in found.settings if setting.key == key)
        try:
            read_trusted(form, value)
        except WrongValueError as error:
            self.leave(f"({owner})", f"{error.found}; {error.allowed}", "write it by hand")
            return False
        return True

    def add_matcher(self, key: str, matcher: dict[str, str]) -> None:
        """A matcher for never, avoid or prefer; once."""
        matchers = self._tables.setdefault("victims", {}).setdefault(key, [])
        if matcher not in matchers:
            matchers.append(matcher)

    def carry(self, setting: str, became: str, note: str = "") -> None:
        """A setting of the peer was carried over."""
        self._carried.append(Carried(show_text(setting), show_text(became), show_text(note)))

    def carry_pattern(self, setting: str, key: str, field: MatchField, regex: str, note: str = "") -> None:
        """A regular expression of the peer for never, avoid or prefer; left when Python's re cannot read it."""
        matcher = {f"{field.value}_regex": regex}
        try:
            read_regex(field)(regex)
            became = f"victims.{key}: {write_value(matcher)}"
        except WrongValueError as error:
            self.leave(setting, error.allowed, f"write it anew under victims.{key}")
            return
        except ValueError as error:
            self.leave(setting, str(error), f"write it anew under victims.{key}")
            return
        self.add_matcher(key, matcher)
        self.carry(setting, became, note)

    def leave(self, setting: str, reason: str, instead: str = "") -> None:
        """A setting of the peer was not carried over."""
        self._left.append(Left(show_text(setting), show_text(reason), show_text(instead)))

    def finish(self, sources: tuple[str, ...]) -> Imported:
        """The import, read by our own loader."""
        imported = Imported(
            self._peer,
            tuple(map(show_text, sources)),
            tuple(self._rules),
            self._tables,
            tuple(self._carried),
            tuple(self._left),
        )
        _prove(imported)
        return imported


def render_toml(imported: Imported) -> str:
    """The file: what was carried over and what was not in comments, then the settings."""
    lines = [*write_comment(f"Made by 'oomreaper import {imported.peer}' from {', '.join(imported.sources)}"), "#"]
    lines += write_comment("Carried over:" if imported.carried else "Nothing was carried over.")
    for carried in imported.carried:
        note = f" ({carried.note})" if carried.note else ""
        lines += write_comment(f"+ {carried.setting} -> {carried.became}{note}")
    if imported.left:
        lines += ["#", *write_comment("NOT carried over:")]
        for line in render_left(imported):
            lines += write_comment(f"- {line}")
    for rule in imported.rules:
        lines += ["", *write_table("[[rule]]", rule)]
    for name, table in imported.tables.items():
        lines += ["", *write_table(f"[{name}]", table)]
    return "\n".join(lines) + "\n"


def render_left(imported: Imported) -> Iterator[str]:
    """Each setting that was not carried over in a line."""
    for left in imported.left:
        yield f"{left.setting}: {left.reason}" + (f"; instead: {left.instead}" if left.instead else "")


def _prove(imported: Imported) -> None:
    from oomreaper.config.load import load_source
    from oomreaper.config.source import parse_source

    try:
        load_source(parse_source(render_toml(imported), "the import"), config_path=None)
    except ConfigError as error:
        if any("voluptuous" in fault.found for fault in error.faults):
            raise
        raise BrokenPromiseError(f"the import from {imported.peer} made a file that we refuse: {error}") from error
