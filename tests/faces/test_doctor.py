"""How ``oomreaper doctor`` looks: on a screen, on a narrow one, in a pipe, and to a program."""

from __future__ import annotations

import json
import re

import pytest

from oomreaper.faces.doctor import render_json, render_text
from oomreaper.model.features import Feature, Features, FeatureState

GOOD = Feature("process_mrelease", FeatureState.AVAILABLE, "answers", is_needed=True)
LIMITED = Feature("psi", FeatureState.LIMITED, "windows of 2 s", lost="short rules", remedy="CAP_SYS_RESOURCE")
MISSING = Feature("swap", FeatureState.MISSING, "none", lost="no warning", remedy="zramctl -f -s 4G")
FORBIDDEN = Feature(
    "pidfd", FeatureState.FORBIDDEN, "pidfd_open: EPERM", lost="nothing is killed", remedy="permit it", is_needed=True
)
EVERY_STATE = Features("6.18.0", "x86_64", (GOOD, LIMITED, MISSING, FORBIDDEN))
LONG = Feature(
    "cgroup",
    FeatureState.LIMITED,
    "hybrid: v1 memory freezer cpu; v2 bare; read-only for us",
    lost="a victim that is frozen or throttled cannot be helped, and stays until that ends",
    remedy="run as root; in the unit: ProtectControlGroups=no; docker run --privileged",
)
ESCAPE = re.compile(r"\x1b\[\d+m")


def test_each_state_has_a_mark_that_needs_no_colour() -> None:
    """A reader without colours tells the four states apart by a word."""
    lines = render_text(EVERY_STATE, width=80, use_color=False).splitlines()

    marks = {line.split()[1]: line.split()[0] for line in lines[1:5]}
    assert marks == {"process_mrelease": "ok", "psi": "limited", "swap": "MISSING", "pidfd": "FORBIDDEN"}


def test_details_are_only_for_what_is_not_wholly_there() -> None:
    """What is available costs one line; the rest says what is lost and what to do."""
    text = render_text(EVERY_STATE, width=80, use_color=False)

    details = text.splitlines()[5:]
    assert details == [
        "psi: short rules",
        "  remedy: CAP_SYS_RESOURCE",
        "swap: no warning",
        "  remedy: zramctl -f -s 4G",
        "pidfd: nothing is killed",
        "  remedy: permit it",
    ]


@pytest.mark.parametrize(("items", "verdict"), [((GOOD,), "a victim can"), ((GOOD, FORBIDDEN), "NO victim can")])
def test_the_verdict_comes_first(items: tuple[Feature, ...], verdict: str) -> None:
    """The first line names the kernel and answers the question that people ask."""
    first = render_text(Features("6.18.0", "x86_64", items), width=80, use_color=False).splitlines()[0]

    assert first == f"Linux 6.18.0 x86_64: {verdict} be reaped here"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("use_color", [True, False])
def test_no_line_is_wider_than_the_screen(width: int, *, use_color: bool) -> None:
    """Every line fits, from 40 columns up, colours not counted."""
    features = Features("6.18.44-a-rather-long-local-version", "x86_64", (*EVERY_STATE.items, LONG))

    text = ESCAPE.sub("", render_text(features, width=width, use_color=use_color))

    assert max(map(len, text.splitlines())) <= width


def test_what_was_cut_on_its_line_is_told_in_full_below() -> None:
    """On a narrow screen the line is cut with a mark, and the detail begins with the whole of it."""
    lines = render_text(Features("6.18.0", "x86_64", (LONG,)), width=40, use_color=False).splitlines()

    table = next(line for line in lines if line.startswith("limited"))
    details = " ".join(line.strip() for line in lines)
    assert table.endswith("..")
    assert f"cgroup: {LONG.found}; {LONG.lost}" in details


def test_the_same_remedy_is_told_once() -> None:
    """A sandbox that refuses many things has one cure, printed once and referred to after that."""
    other = LIMITED._replace(name="capabilities")

    text = render_text(Features("6.18.0", "x86_64", (LIMITED, other)), width=80, use_color=False)

    assert text.count("CAP_SYS_RESOURCE") == 1
    assert "remedy: as for psi" in text


def test_colour_is_only_added_when_asked_for() -> None:
    """Without colour no escape sequence is printed; with it the text is the same, and the fatal is red."""
    plain = render_text(EVERY_STATE, width=80, use_color=False)
    colored = render_text(EVERY_STATE, width=80, use_color=True)

    assert "\x1b" not in plain
    assert ESCAPE.sub("", colored) == plain
    assert "\x1b[31mFORBIDDEN" in colored
    assert "\x1b[33mMISSING" in colored
    assert "\x1b[32mok" in colored


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b]0;owned\x07",
        "a\nok        pidfd",
        "\x9b31m",
        "\u202egnp",
        "\udc80",
        "tab\there",
        "\x7f",
        "\r",
        "caf\u00e9",
    ],
)
def test_nothing_the_kernel_says_reaches_the_terminal_raw(hostile: str) -> None:
    """Escapes, newlines, bidi marks and broken bytes in any text are shown as escapes, in both outputs."""
    item = Feature("core_pattern", FeatureState.LIMITED, hostile, lost=hostile, remedy=hostile)
    features = Features(hostile, hostile, (item,))

    text = render_text(features, width=80, use_color=False)
    rows = [json.loads(line) for line in render_json(features)]

    assert text.replace("\n", "").isprintable()
    assert text.isascii()
    assert len(text.splitlines()) == len(
        render_text(Features("r", "m", (item,)), width=80, use_color=False).splitlines()
    )
    assert all(
        value.isprintable() and value.isascii() for row in rows for value in row.values() if isinstance(value, str)
    )


def test_json_is_one_object_a_line_with_a_fixed_schema() -> None:
    """The first line is the machine and the verdict, then each feature with exactly these fields."""
    lines = list(render_json(EVERY_STATE))

    rows = [json.loads(line) for line in lines]
    assert not any("\n" in line for line in lines)
    assert rows[0] == {"kernel_release": "6.18.0", "machine": "x86_64", "can_reap": False}
    assert rows[1] == {
        "name": "process_mrelease",
        "state": "available",
        "found": "answers",
        "lost": "",
        "remedy": "",
        "is_needed": True,
    }
    assert [row["state"] for row in rows[1:]] == ["available", "limited", "missing", "forbidden"]


def test_a_machine_with_all_there_is_fits_a_screen() -> None:
    """Fifteen features and the verdict leave room for a prompt on 24 lines."""
    items = tuple(GOOD._replace(name=f"feature{number}") for number in range(15))

    text = render_text(Features("6.18.0", "x86_64", items), width=80, use_color=False)

    assert len(text.splitlines()) == 16
