"""``oomreaper doctor`` on the screen and as JSON. Pure: features go in, text comes out.

Everything printed may have come from the kernel or from whoever named a file or a cgroup, so nothing reaches
a terminal but printable characters. The marks say it without colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from oomreaper.model.features import FeatureState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.model.features import Feature, Features

_RESET = "\x1b[0m"
_GREEN, _YELLOW, _RED = "\x1b[32m", "\x1b[33m", "\x1b[31m"
# "process_mrelease", the longest name, and "FORBIDDEN", the longest mark.
_NAME_COLUMNS, _MARK_COLUMNS = 16, 9
_INDENT = "  "
_CUT = ".."
# Below that no sentence can be read any more, and we rather let the terminal break the lines.
_LEAST_WIDTH = 30


def render_text(features: Features, *, width: int, use_color: bool) -> str:
    """One line a feature, then what is lost and the remedy for those that are not wholly there.

    Args:
        features: What was found.
        width: Columns of the terminal; no line is longer, unless a single word is.
        use_color: Whether the marks are coloured as well.
    """
    import textwrap  # 5 ms that nobody pays who only wants the JSON

    columns = max(width, _LEAST_WIDTH)
    system = f"Linux {features.kernel_release} {features.machine}"
    verdict = "a victim can be reaped here" if features.can_reap else "NO victim can be reaped here"
    lines = textwrap.wrap(_make_printable(f"{system}: {verdict}"), columns)
    lines += [_render_line(item, columns, use_color=use_color) for item in features.items]
    name_by_remedy: dict[str, str] = {}
    for item in features.items:
        if item.state is FeatureState.AVAILABLE:
            continue
        first_name = name_by_remedy.setdefault(item.remedy, item.name)
        remedy = item.remedy if first_name == item.name else f"as for {first_name}"
        # What was found in full, where its line above had to be cut.
        is_cut = len(_make_printable(item.found)) > _room_for_found(columns)
        lost = "; ".join(text for text in (item.found if is_cut else "", item.lost) if text)
        for label, text in ((f"{item.name}: ", lost), (f"{_INDENT}remedy: ", item.remedy and remedy)):
            if text:
                lines += textwrap.wrap(
                    _make_printable(label + text),
                    columns,
                    subsequent_indent=_INDENT * 2,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join(lines)


def render_json(features: Features) -> Iterator[str]:
    """One JSON object a line: first the machine and the verdict, then each feature, field by field."""
    import json

    verdict = {
        "kernel_release": _make_printable(features.kernel_release),
        "machine": _make_printable(features.machine),
        "can_reap": features.can_reap,
    }
    yield json.dumps(verdict)
    for item in features.items:
        row = {
            "name": item.name,
            "state": item.state.value,
            "found": _make_printable(item.found),
            "lost": _make_printable(item.lost),
            "remedy": _make_printable(item.remedy),
            "is_needed": item.is_needed,
        }
        yield json.dumps(row)


def _render_line(item: Feature, columns: int, *, use_color: bool) -> str:
    mark = f"{_name_mark(item):<{_MARK_COLUMNS}}"
    if use_color:
        mark = _color_of(item) + mark + _RESET
    found = _make_printable(item.found)
    room = _room_for_found(columns)
    if len(found) > room:
        found = found[: room - len(_CUT)] + _CUT
    return f"{mark} {_make_printable(item.name):<{_NAME_COLUMNS}} {found}".rstrip()


def _room_for_found(columns: int) -> int:
    return columns - _MARK_COLUMNS - _NAME_COLUMNS - 2


def _name_mark(item: Feature) -> str:
    match item.state:
        case FeatureState.AVAILABLE:
            return "ok"
        case FeatureState.LIMITED:
            return "limited"
        case FeatureState.MISSING:
            return "MISSING"
        case FeatureState.FORBIDDEN:
            return "FORBIDDEN"
        case _:
            assert_never(item.state)


def _color_of(item: Feature) -> str:
    if item.state is FeatureState.AVAILABLE:
        return _GREEN
    is_fatal = item.is_needed and item.state is not FeatureState.LIMITED
    return _RED if is_fatal else _YELLOW


def _make_printable(text: str) -> str:
    """Escape what is no printable ASCII, so that no terminal obeys it, and widths and encodings hold."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if " " <= character <= "~" else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
