"""Single values: patterns match what people mean by them, and nothing else."""

from __future__ import annotations

import os
import pwd
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.config.values import (
    WrongValueError,
    compile_glob,
    read_duration,
    read_percent,
    read_regex,
    read_user,
    show_duration,
    show_value,
)
from oomreaper.config.write import write_comment, write_value
from oomreaper.model.plan import MatchField

ID = "3f4a9c01d2e7" + "0" * 52


@pytest.mark.parametrize(
    ("field", "pattern", "matching", "other"),
    [
        (MatchField.COMM, "sshd", ("sshd",), ("sshd2", "xsshd", "sshd\n", "SSHD", "ssh")),
        (MatchField.COMM, "Web*", ("Web Content", "Web", "Web\n"), ("aWeb",)),
        (MatchField.COMM, "a.c", ("a.c",), ("abc",)),
        (MatchField.COMM, "?[ab]", ("xa", "\u00fcb"), ("a", "xc")),
        (MatchField.EXE, "/usr/bin/x", ("/usr/bin/x",), ("/bin/usr/bin/x", "/usr/bin/x2", "x")),
        (MatchField.EXE, "/opt/*/x", ("/opt/a/x", "/opt/a/b/x"), ("/opt/x",)),
        (MatchField.EXE, "py*", ("/usr/bin/python3", "py"), ("/py/x", "/usr/bin/xpy", "/usr/py3/x")),
        (MatchField.UNIT, "sshd", ("sshd.service",), ("sshd", "sshd.socket", "xsshd.service")),
        (MatchField.UNIT, "ssh*", ("sshd.service", "ssh"), ("xssh",)),
        (MatchField.UNIT, "a.scope", ("a.scope",), ("a.scope.service", "abscope")),
        (MatchField.CGROUP, "/user.slice/*", ("/user.slice/a/b",), ("/user.slice", "/a/user.slice/b")),
        (MatchField.CONTAINER, "3f4a9c01d2e7", (ID,), ("9" + ID[1:],)),
        (MatchField.CONTAINER, ID, (ID,), (ID + "0",)),
        (MatchField.CONTAINER, "web", ("web",), ("web2",)),
        (MatchField.CMDLINE, "java *-jar x", ("java -Xmx1g -jar x",), ("java -jar x y",)),
    ],
)
def test_a_pattern_matches_the_whole(
    field: MatchField, pattern: str, matching: tuple[str, ...], other: tuple[str, ...]
) -> None:
    """Searched as the watcher searches: what is meant is found, what only contains it is not."""
    regex = re.compile(compile_glob(field, pattern))

    assert [text for text in matching if not regex.search(text)] == []
    assert [text for text in other if regex.search(text)] == []


@given(st.text(min_size=1).filter(lambda text: not set("*?[") & set(text)), st.text())
def test_a_plain_name_matches_itself_only(name: str, other: str) -> None:
    """Whatever characters it is made of, none of them has a meaning for the expression."""
    regex = re.compile(compile_glob(MatchField.COMM, name))

    assert regex.search(name)
    assert bool(regex.search(other)) == (name == other)


def test_users_become_numbers() -> None:
    """A name is looked up, a number is taken as it is; and 100 is not 1000."""
    me = pwd.getpwuid(os.geteuid())
    for raw in (me.pw_name, me.pw_uid, str(me.pw_uid)):
        assert read_user(raw).regex == rf"\A{me.pw_uid}\Z"

    assert not re.search(read_user(100).regex, "1000")
    for wrong in (-1, True, 1.5, "", None, "\u0663"):
        with pytest.raises(WrongValueError):
            read_user(wrong)


def test_a_regular_expression_is_searched_for() -> None:
    """As it was written, anywhere in the text."""
    assert read_regex(MatchField.CMDLINE)("--type=r").regex == "--type=r"


@given(st.integers(0, 24 * 3600 * 1000))
def test_a_duration_is_shown_as_it_can_be_read(duration_ms: int) -> None:
    """What a message or the import writes is the same time again."""
    duration_ns = duration_ms * 1_000_000

    assert duration_ns == read_duration(0, 24 * 3600 * 10**9)(show_duration(duration_ns))


@pytest.mark.parametrize("raw", ["1%", " 0 %", "100%", "2.5%"])
def test_shares(raw: str) -> None:
    """Per cent with its sign."""
    assert read_percent(raw) == float(raw.strip(" %"))


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_survives_toml(text: str) -> None:
    """What is written is what TOML reads, and is printable, whatever it holds."""
    written = write_value(text)

    assert tomllib.loads(f"x = {written}") == {"x": text}
    assert written.isprintable()


@given(st.text())
def test_no_text_ends_its_comment(text: str) -> None:
    """A peer's setting in a comment cannot become a setting of ours."""
    lines = list(write_comment(text))

    assert all(line.startswith("# ") and line.isprintable() for line in lines)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_what_was_found_is_shown_short_and_safe(raw: object) -> None:
    """Nothing in a file reaches the terminal raw, or fills it."""
    shown = show_value(raw)

    assert shown.isprintable()
    assert len(shown) <= 60 * 10 + 2
