"""Names out of the kernel made safe to show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.outcome import printable


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_shown_is_what_python_would_write(text: str) -> None:
    """Printable characters stay; others stand as in Python's own escapes."""
    expected = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

    assert printable(text.encode()) == expected


@given(st.binary())
def test_any_bytes_become_one_printable_line(raw: bytes) -> None:
    """No control character, no line break, no invalid UTF-8 gets through."""
    assert printable(raw).isprintable()
