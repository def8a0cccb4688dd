"""The check of a whole file against the table of settings: every fault of it, not only the first.

The shape (tables, keys, lists, what is required) is voluptuous' business; the single values are read by ``values``.
This is the only module that imports the library, and only the reading of a file imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voluptuous import Invalid, MultipleInvalid, Optional, Required, RequiredFieldInvalid, Schema

from oomreaper.config.settings import TABLES, find_table
from oomreaper.config.values import WrongValueError, guess_word, show_path, show_text, show_value
from oomreaper.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oomreaper.config.settings import Form, Setting, Table

# A file with more faults than this is no settings file; the rest would only bury the first.
MOST_FAULTS = 100


class _FaultInvalid(Invalid):
    """A fault as voluptuous carries it about: it adds the path."""

    def __init__(self, found: str, allowed: str, suggestion: str = "", path: list[Any] | None = None) -> None:
        super().__init__(allowed, path)
        self.found = found
        self.allowed = allowed
        self.suggestion = suggestion


def check_document(
    document: Mapping[str, object], file: str, find_line: Callable[[tuple[str | int, ...], object], int | None]
) -> tuple[dict[str, Any], tuple[Fault, ...]]:
    """Read a document.

    Args:
        document: What tomllib made of the file.
        file: Its name, for the faults.
        find_line: The line of a key path and what stands there, None when it is not known.

    Returns:
        The tables, each value as the plan holds it, and no fault; or nothing and the faults.
    """
    try:
        return _SCHEMA(dict(document)), ()
    except MultipleInvalid as error:
        errors = error.errors
    faults = []
    told = [(invalid, path, _tell(invalid, path)) for invalid in errors if (path := _path_of(invalid))]
    # A key that is missing because it is misspelt is told of once.
    meant = {(*path[:-1], suggestion) for _, path, (_, _, suggestion) in told}
    told = [row for row in told if not (_is_missing(row[0]) and row[1] in meant)]
    # What is missing comes from a set, in no order of its own.
    told.sort(key=lambda row: _list_keys(row[1][:-1]).index(str(row[1][-1])) if _is_missing(row[0]) else -1)
    for invalid, path, (found, allowed, suggestion) in told[:MOST_FAULTS]:
        # What is missing stands nowhere: its table is shown.
        shown = path[:-1] if _is_missing(invalid) else path
        line = find_line(shown, _look_up(document, path))
        faults.append(Fault(show_text(file), show_path(path), line, found, allowed, suggestion))
    faults.sort(key=lambda fault: fault.line or 0)
    if len(told) > MOST_FAULTS:
        faults.append(Fault(show_text(file), "", None, f"and {len(told) - MOST_FAULTS} faults more", ""))
    return {}, tuple(faults)


def _is_missing(invalid: Invalid) -> bool:
    return isinstance(invalid, RequiredFieldInvalid)


def _path_of(invalid: Invalid) -> tuple[str | int, ...]:
    # The path of a missing key ends in the schema's marker.
    return tuple(part if isinstance(part, int) else str(getattr(part, "schema", part)) for part in invalid.path)


def _tell(invalid: Invalid, path: tuple[str | int, ...]) -> tuple[str, str, str]:
    """What was found, what is allowed, what was meant."""
    if isinstance(invalid, _FaultInvalid):
        return invalid.found, invalid.allowed, invalid.suggestion
    if _is_missing(invalid):
        return "it is missing", "each rule must have it", ""
    # What is left is a key that the table does not have.
    word = str(path[-1])
    known = _list_keys(path[:-1])
    if len(path) == 1 and find_table(word) is None and guess_word(word, known) == "":
        # A key before the first header, most likely.
        owner = next((table for table in TABLES if word in (item.key for item in table.settings)), None)
        if owner is not None:
            return "there is no such table", f"{word} belongs under {owner.header}", ""
    what = "there is no such table" if len(path) == 1 else "there is no such setting"
    return what, f"known are {', '.join(known)}", guess_word(word, known)


def _list_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that a table may have."""
    if not path:
        return [table.name for table in TABLES]
    table = find_table(str(path[0]))
    assert table is not None, "voluptuous went into a table that is not in the schema"
    for part in path[1:]:
        setting = next((item for item in table.settings if item.key == part), None)
        if setting is not None:
            return [item.key for item in setting.form.fields]
    return [item.key for item in table.settings]


def _look_up(document: object, path: tuple[str | int, ...]) -> object:
    for part in path:
        try:
            document = document[part]  # type: ignore[index] # a wrong shape ends in the except below
        except (TypeError, KeyError, IndexError):
            return None
    return document


# -- the schema --------------------------------------------------------------------------------------------


def _make_schema() -> Schema:
    return Schema({Optional(table.name): _make_table(table) for table in TABLES})


def _make_table(table: Table) -> Callable[[object], object]:
    return (
        _make_list(_need_table(table.settings, table.header), f"an array of tables, each begun by {table.header}")
        if (table.is_array)
        else _need_table(table.settings, table.header)
    )


def _need_table(settings: tuple[Setting, ...], words: str) -> Callable[[object], object]:
    schema = Schema(
        {(Required if item.is_required else Optional)(item.key): _make_form(item.form) for item in settings}
    )

    def check(raw: object) -> object:
        if not isinstance(raw, dict):
            raise _FaultInvalid(f"found {show_value(raw)}", f"allowed is a table, {words}")
        return schema(raw)

    return check


def _make_form(form: Form) -> Callable[[object], object]:
    read = _carry(form.read)
    if form.fields:
        table = _need_table(form.fields, 'as {comm = "sshd"}')
        inner = read
        read = lambda raw: inner(table(raw))  # noqa: E731 - two readers, one after the other
    return _make_list(read, form.words, at_least_one=form.at_least_one) if form.is_list else read


def _carry(read: Callable[[object], object]) -> Callable[[object], object]:
    """A reader whose WrongValueError voluptuous understands."""

    def check(raw: object) -> object:
        try:
            return read(raw)
        except WrongValueError as error:
            raise _FaultInvalid(error.found, error.allowed, error.suggestion) from error

    return check


def _make_list(
    read: Callable[[object], object], words: str, *, at_least_one: bool = False
) -> Callable[[object], tuple[object, ...]]:
    """A check of a list that reports the faults of all its elements; voluptuous' own stops at the first bad table."""

    def check(raw: object) -> tuple[object, ...]:
        if not isinstance(raw, list):
            raise _FaultInvalid(f"found {show_value(raw)}", f"allowed is {words}")
        if at_least_one and not raw:
            raise _FaultInvalid("found an empty list", f"allowed is {words}, one at least")
        read_values, errors = [], []
        for position, element in enumerate(raw):
            try:
                read_values.append(read(element))
            except MultipleInvalid as error:
                error.prepend([position])
                errors.extend(error.errors)
            except Invalid as error:
                error.prepend([position])
                errors.append(error)
        if errors:
            raise MultipleInvalid(errors)
        return tuple(read_values)

    return check


_SCHEMA = _make_schema()
