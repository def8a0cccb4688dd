"""How ``oomreaper explain`` looks: on a screen, on a narrow one, to a program; and that it survives any state."""

from __future__ import annotations

import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.faces.explain import render_json, render_text

MIB, GIB = 1 << 20, 1 << 30
ESCAPE = re.compile(r"\x1b\[\d+m")
HOSTILE = [
    "\x1b]0;owned\x07",
    "a\nwhy nothing is done",
    "\x9b31m",
    "\u202egnp",
    "\udc80",
    "tab\there",
    "\x7f",
    "caf\u00e9",
]


def _scope(name: str = "machine", **fields: object) -> dict[str, object]:
    return {
        "scope": name,
        "total_bytes": 16 * GIB,
        "available_bytes": 4 * GIB,
        "swap_total_bytes": 2 * GIB,
        "swap_free_bytes": GIB,
        "current_bytes": None,
        "limit_bytes": None,
        "psi_some_percent": 1.25,
        "psi_full_percent": 0.5,
        "fall_bytes_per_second": 100.0 * MIB,
        "seconds_to_exhaustion": 41.0,
        "next_look_ms": 250.0,
        **fields,
    }


def _condition(text: str, measured: float | None, distance: float | None, unit: str = "%") -> dict[str, object]:
    is_met = distance is not None and distance <= 0
    return {"text": text, "measured": measured, "unit": unit, "is_met": is_met, "distance": distance}


def _rule(name: str, *conditions: dict[str, object], **fields: object) -> dict[str, object]:
    return {
        "rule": name,
        "scope": "machine",
        "is_active": False,
        "held_s": None,
        "steps": ["terminate", "kill after 10s"],
        "steps_taken": 0,
        "conditions": list(conditions),
        **fields,
    }


def _process(pid: int, comm: str, gain_bytes: int, standing: str = "eligible", **fields: object) -> dict[str, object]:
    return {
        "rank": pid if standing in ("eligible", "avoided") else None,
        "pid": pid,
        "start_time_ticks": 5,
        "comm": comm,
        "uid": 1000,
        "standing": standing,
        "points_bytes": float(gain_bytes),
        "gain_bytes": gain_bytes,
        "shmem_bytes": 0,
        "growth_bytes": 0,
        "oom_score_adj": 0,
        "age_s": 3600.0,
        "cmdline": None,
        "exe": None,
        "cgroup": None,
        "kill_unit": "process",
        "kill_unit_key": "",
        "reasons": ["gives back much"],
        **fields,
    }


LOW = _rule("low", _condition("mem_available < 4%", 25.0, 21.0), _condition("swap_free < 10%", 50.0, 40.0))
THRASHING = _rule("thrashing", _condition("psi_memory_full > 40% over 10s", None, None))
SETTLED = {
    "event": "settled",
    "time": "2026-11-25T10:00:00.000Z",
    "outcome": "reaped",
    "pid": 9,
    "comm": "old",
    "freed_bytes": GIB,
    "reason": "all of its memory is back",
}
STATE: dict[str, object] = {
    "event": "state",
    "version": 1,
    "dry_run": False,
    "config": "/etc/oomreaper.toml",
    "scopes": [_scope()],
    "rules": [LOW, THRASHING],
    "ranking": [
        _process(1, "hog", 5 * GIB, growth_bytes=GIB, oom_score_adj=200),
        _process(2, "Xorg", GIB, "avoided", reasons=["matched by avoid"]),
        _process(3, "tiny", MIB, "too_small", reasons=["not worth it"]),
        _process(4, "sshd", 8 * MIB, "protected", reasons=["its oom_score_adj is -1000"]),
    ],
    "counts": {"considered": 212, "eligible": 1, "protected": 170},
    "victims": [],
    "last": [SETTLED],
    "notes": ["no rule is near: the closest is low"],
    "statistics": {"looks": 12},
}


def _crowded() -> dict[str, object]:
    """All there can be: many groups, rules, processes, victims, incidents, and long sentences."""
    words = "a sentence that goes on for rather longer than a narrow screen is wide"
    return {
        **STATE,
        "dry_run": True,
        "scopes": [_scope(), *(_scope(f"/system.slice/docker-{number:064}.scope") for number in range(40))],
        "rules": [LOW, THRASHING, *(_rule(f"rule-{number}", *LOW["conditions"]) for number in range(40))],  # type: ignore[misc] # a list
        "ranking": [
            *(_process(number, "a name of 15 ch", GIB, reasons=[words] * 3) for number in range(1, 41)),
            *(_process(number, "small", MIB, "too_small", reasons=[words]) for number in range(41, 49)),
            *(_process(number, "sshd", MIB, "protected", reasons=[words]) for number in range(49, 73)),
        ],
        "victims": [{"pid": number, "comm": "hog", "since_s": 1.5, "state": "REAPING"} for number in range(3)],
        "last": [{**SETTLED, "reason": words}] * 10,
        "notes": [f"{number} {words}" for number in range(12)],
    }


def _text(state: dict[str, object] | None = None, *, width: int = 80, show_all: bool = False) -> str:
    return render_text(STATE if state is None else state, width=width, use_color=False, show_all=show_all)


def test_an_ordinary_state_reads_like_this() -> None:
    """The whole of it: memory, rules, who would die and who never, the last incident, and why nothing is done."""
    assert _text().splitlines() == [
        "oomreaper watches by /etc/oomreaper.toml",
        "memory",
        "  machine         [###############.....]  75 % used",
        "    4.0 GiB of 16.0 GiB available; swap 1.0 GiB of 2.0 GiB free; pressure some..",
        "rules: how near to firing",
        "  low             [###########.........]  56 %",
        "    mem_available < 4%: now 25.0 %, to fall by 21.0 %",
        "    swap_free < 10%: now 50.0 %, to fall by 40.0 %",
        "  thrashing       [....................] UNREADABLE",
        "    psi_memory_full > 40% over 10s: not told here",
        "who would die: 1 of 212 processes are eligible",
        "   #     PID NAME                GIVES      GREW   ADJ  WHY",
        "   1       1 hog               5.0 GiB   1.0 GiB   200  gives back much",
        "   2       2 Xorg              1.0 GiB   0.0 MiB     0  avoided: matched by av..",
        "protected: 170",
        "  sshd (4), 8.0 MiB: its oom_score_adj is -1000",
        "  169 more of the protected (--all)",
        "last incidents",
        "  2026-11-25T10:00:00.000Z reaped, old (9), 1.0 GiB back, all of its memory is..",
        "why nothing is done",
        "  no rule is near: the closest is low",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("use_color", [True, False])
@pytest.mark.parametrize("show_all", [True, False])
def test_no_line_is_wider_than_the_screen(width: int, *, use_color: bool, show_all: bool) -> None:
    """Every line fits, from 40 columns up, colours not counted."""
    for state in (STATE, _crowded()):
        text = ESCAPE.sub("", render_text(state, width=width, use_color=use_color, show_all=show_all))

        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_at_most_a_screenful(width: int) -> None:
    """24 lines with the prompt, however much there is to tell; what is left out is counted and --all named."""
    text = _text(_crowded(), width=width)

    assert len(text.splitlines()) <= 23
    assert "more of the processes (--all)" in text or "more lines (--all)" in text
    assert "more of the notes (--all)" in text
    assert "why nothing is done" in text


def test_all_shows_all() -> None:
    """With --all everybody that the state names is there, with points, unit, command line; nothing is left out."""
    state = _crowded()
    ranking = state["ranking"]
    assert isinstance(ranking, list)
    ranking[0] = _process(
        4711,
        "hog",
        GIB,
        cmdline="hog --much",
        exe="/usr/bin/hog",
        cgroup="/a",
        kill_unit="cgroup",
        kill_unit_key="/a/b",
    )

    text = _text(state, width=200, show_all=True)

    assert text.count("a name of 15 ch") == 39
    assert text.count("small (") == 8
    assert text.count("sshd (") == 24
    for fact in (
        "points 1.0 GiB",
        "exe /usr/bin/hog",
        "cmdline hog --much",
        "cgroup /a",
        "its cgroup /a/b",
        "uid 1000",
    ):
        assert fact in text
    assert "(--all)" not in text
    assert "146 more of the protected (not told)" in text
    assert " 11 a sentence" in text


def test_what_has_fired_comes_first_then_what_is_near() -> None:
    """On a full screen the rules that matter are those that are shown."""
    near = _rule("near", _condition("mem_available < 4%", 5.0, 1.0))
    fired = _rule("fired", _condition("mem_available < 4%", 30.0, 26.0), is_active=True, held_s=3.0, steps_taken=1)
    holds = _rule("holding", _condition("mem_available < 4%", 3.0, -1.0), held_s=1.5)
    text = _text({**STATE, "rules": [THRASHING, LOW, near, fired, holds]}, show_all=True)

    order = [line.split()[0] for line in text.splitlines() if re.match(r"  \S+ +\[[#.]+\]", line)]
    assert order == ["machine", "fired", "holding", "near", "low", "thrashing"]
    assert "] FIRED" in text
    assert "] holds 1.5 s" in text
    assert "does: terminate, then kill after 10s (1 taken)" in text


def test_time_that_does_not_run_out_is_no_lack() -> None:
    """A forecast without a number is calm; a pressure without one cannot be read."""
    forecast = _rule("forecast", _condition("time_to_exhaustion < 2s", None, None, "s"))

    text = _text({**STATE, "rules": [forecast]})

    assert "memory does not run out" in text
    assert "UNREADABLE" not in text
    assert "UNREADABLE" in _text()


def test_sizes_of_a_condition_have_their_unit() -> None:
    """A threshold in bytes is told in GiB, and its gauge is a share of the scope's memory."""
    rule = _rule("floor", _condition("mem_available < 1G", 4.0 * GIB, 3.0 * GIB, "bytes"))

    text = _text({**STATE, "rules": [rule]})

    assert "mem_available < 1G: now 4.0 GiB, to fall by 3.0 GiB" in text
    assert "  80 %" in text


def test_without_a_file_and_in_a_dry_run() -> None:
    """The first line says both."""
    first = _text({**STATE, "dry_run": True, "config": None}, width=200).splitlines()[0]

    assert first == ("oomreaper (dry run: nobody is signalled) watches by its defaults: there is no configuration file")


def test_a_victim_in_work_is_shown() -> None:
    """Who, in which state, for how long."""
    state = {**STATE, "victims": [{"pid": 77, "comm": "hog", "since_s": 0.25, "state": "REAPING"}]}

    assert "  hog (77): REAPING since 0.2 s" in _text(state).splitlines()


def test_colour_is_only_added_when_asked_for() -> None:
    """Without colour no escape sequence is printed; with it the text is the same, and a met gauge is red."""
    state = {**STATE, "rules": [_rule("low", _condition("mem_available < 4%", 3.0, -1.0), is_active=True), THRASHING]}
    colored = render_text(state, width=80, use_color=True)

    assert "\x1b" not in _text(state)
    assert ESCAPE.sub("", colored) == _text(state)
    assert "\x1b[31m####" in colored
    assert "\x1b[32m####" in colored


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("show_all", [True, False])
def test_nothing_reaches_the_terminal_raw(hostile: str, *, show_all: bool) -> None:
    """Escapes, newlines, bidi marks and broken bytes in any text of the state are shown as escapes."""
    state = _with_every_text(copy.deepcopy(STATE), hostile)
    calm = _with_every_text(copy.deepcopy(STATE), "x" * len(hostile.encode("unicode_escape")))

    text = render_text(state, width=200, use_color=False, show_all=show_all)

    assert text.replace("\n", "").isprintable()
    assert text.isascii()
    assert len(text.splitlines()) == len(render_text(calm, width=200, use_color=False, show_all=show_all).splitlines())
    assert all(line.isascii() and line.isprintable() for line in render_json(state))


def _with_every_text(value: object, text: str) -> dict[str, object]:
    replaced = _replace_texts(value, text)
    assert isinstance(replaced, dict)
    return replaced


def _replace_texts(value: object, text: str) -> object:
    if isinstance(value, str):
        # These are compared, not shown.
        return value if value in ("machine", "%", "eligible", "avoided", "too_small", "protected", "process") else text
    if isinstance(value, list):
        return [_replace_texts(each, text) for each in value]
    return {key: _replace_texts(each, text) for key, each in value.items()} if isinstance(value, dict) else value


def test_json_is_the_state_on_one_line() -> None:
    """One object, one line, nothing added and nothing left out."""
    (line,) = render_json(STATE)

    assert "\n" not in line
    assert json.loads(line) == STATE


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(data=st.data(), width=st.integers(-5, 200), show_all=st.booleans(), use_color=st.booleans())
def test_any_answer_of_a_socket_is_shown_without_an_error(
    *, data: st.DataObject, width: int, show_all: bool, use_color: bool
) -> None:
    """Fields that are missing or of another type are no reason to fail: the other end may be another version."""
    state = copy.deepcopy(STATE)
    for _ in range(data.draw(st.integers(1, 4))):
        holder: object = state
        while isinstance(holder, (dict, list)) and holder:
            key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
            if data.draw(st.booleans()):
                holder[key] = data.draw(ANYTHING)
                break
            holder = holder[key]

    text = render_text(state, width=width, use_color=use_color, show_all=show_all)

    assert ESCAPE.sub("", text).replace("\n", "").isprintable()
    assert text.isascii()
    if not show_all and width >= 40:
        assert len(text.splitlines()) <= 23


def test_an_empty_answer_is_shown() -> None:
    """The bare minimum of a state: nothing is claimed, nothing fails."""
    text = _text({"event": "state"})

    assert "not looked at yet" in text
    assert "nobody has been looked at yet" in text
