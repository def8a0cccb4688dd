"""``oomreaper explain`` on the screen and as JSON. Pure: a state as the watcher tells it goes in, text comes out.

Five sections: memory now, how far each rule is from firing, who is being worked on, who would be chosen and who never,
and in words why nothing is done. On a screen it is at most one screenful: the ranking and the protected are shown as
far as there is room, and what is left out is counted. The state came through a socket, so a field that is missing or
of another type is shown as not told, and nothing reaches a terminal but printable ASCII.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.policy.badness import size
from oomreaper.policy.explain import find_nearness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RESET = "\x1b[0m"
_BOLD, _GREEN, _YELLOW, _RED = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m"
_INDENT = "  "
_CUT = ".."
# Below that no table can be read any more, and we rather let the terminal break the lines.
_LEAST_WIDTH = 30
# From there on the whole of a process's row has room for its reasons beside it.
_WIDE = 76
# A terminal has 24 lines, and the prompt takes one.
_SCREEN_LINES = 23
# What is tried, from rich to poor, until all fits: the rows of each table, and whether sentences and notes are cut.
_TRIALS = (
    (8, False, False),
    (5, False, False),
    (5, True, False),
    (3, True, False),
    (2, True, False),
    (1, True, False),
    (1, True, True),
)
_MOST_LAST, _MOST_NOTES, _MOST_SCOPES, _MOST_RULES = 3, 6, 4, 6
_ALL = 1 << 30
# Beyond all sizes and times there are; infinity and "not a number" are beyond it too.
_LARGEST_NUMBER = 1e24
_NAME_COLUMNS = 15  # TASK_COMM_LEN less its NUL, include/linux/sched.h
_MOST_BAR_COLUMNS = 20
# From there on a gauge is yellow; the note of policy.explain calls the rule near from there on too.
_NEAR = 0.8


class _Limits(NamedTuple):
    """How many of each are shown."""

    processes: int
    protected: int
    scopes: int
    rules: int
    notes: int
    last: int
    is_brief: bool  # sentences are cut at one line
    are_notes_brief: bool  # the notes too: they are the answer, so only as a last resort


_EVERYTHING = _Limits(_ALL, _ALL, _ALL, _ALL, _ALL, _ALL, is_brief=False, are_notes_brief=False)


class _Screen(NamedTuple):
    columns: int
    use_color: bool

    @property
    def bar_columns(self) -> int:
        return min(_MOST_BAR_COLUMNS, self.columns // 4)


def render_text(state: Mapping[str, object], *, width: int, use_color: bool, show_all: bool = False) -> str:
    """The state for people; at most a screenful, unless ``show_all``.

    Args:
        state: A state event, as ``policy.explain.build_state`` makes it.
        width: Columns of the terminal; no line is longer, unless a single word is.
        use_color: Whether gauges and headings are coloured as well.
        show_all: Every process, rule and note that the state holds, with nothing cut.
    """
    screen = _Screen(max(width, _LEAST_WIDTH), use_color)
    if show_all:
        return "\n".join(_render(state, screen, _EVERYTHING) + _render_notes(state, screen, _EVERYTHING))
    facts: list[str] = []
    notes: list[str] = []
    for rows, is_brief, are_notes_brief in _TRIALS:
        limits = _Limits(
            processes=rows,
            protected=rows // 2,
            scopes=min(rows, _MOST_SCOPES),
            rules=min(rows, _MOST_RULES),
            notes=min(rows + 1, _MOST_NOTES),
            last=min(rows // 2, _MOST_LAST),
            is_brief=is_brief,
            are_notes_brief=are_notes_brief,
        )
        facts, notes = _render(state, screen, limits), _render_notes(state, screen, limits)
        if len(facts) + len(notes) <= _SCREEN_LINES:
            break
    else:
        # The answer stays, and as much of the facts as there is room for.
        kept = _SCREEN_LINES - len(notes) - 1
        facts[kept:] = [_fit(f"{_INDENT}{len(facts) - kept} more lines (--all)", screen.columns)]
    return "\n".join(facts + notes)


def render_json(state: Mapping[str, object]) -> Iterator[str]:
    """One JSON object a line, as every command: here there is one, the state itself."""
    yield json.dumps(state)


def _render(state: Mapping[str, object], screen: _Screen, limits: _Limits) -> list[str]:
    source = _text(state.get("config"))
    actor = "oomreaper (dry run: nobody is signalled)" if state.get("dry_run") else "oomreaper"
    plan = f"watches by {source}" if source else "watches by its defaults: there is no configuration file"
    lines = _sentence(f"{actor} {plan}", screen, limits, indent="")
    row_by_scope = {_text(row.get("scope")): row for row in _rows(state, "scopes")}
    lines += _render_scopes(_rows(state, "scopes"), screen, limits)
    lines += _render_rules(_rows(state, "rules"), row_by_scope, screen, limits)
    lines += _render_victims(_rows(state, "victims"), screen, limits)
    lines += _render_ranking(state, screen, limits)
    lines += _render_last(_rows(state, "last"), screen, limits)
    return lines


def _render_notes(state: Mapping[str, object], screen: _Screen, limits: _Limits) -> list[str]:
    notes = state.get("notes")
    texts = [_text(note) for note in notes] if isinstance(notes, list) else []
    if not texts:
        return []
    lines = [_heading("why nothing is done", screen)]
    for text in texts[: limits.notes]:
        lines += _sentence(text, screen, limits._replace(is_brief=limits.are_notes_brief))
    return lines + _count_rest(len(texts), limits.notes, "notes", limits)


# -- memory ------------------------------------------------------------------------------------------------------


def _render_scopes(rows: list[Mapping[str, object]], screen: _Screen, limits: _Limits) -> list[str]:
    lines = [_heading("memory", screen)]
    if not rows:
        lines.append(f"{_INDENT}not looked at yet")
    for row in rows[: limits.scopes]:
        total, available = _number(row.get("total_bytes")), _number(row.get("available_bytes"))
        if not total or available is None:
            lines += _sentence(f"{_text(row.get('scope'))}: not told", screen, limits)
            continue
        share = min(max(1 - available / total, 0.0), 1.0)
        tail = f" {share * 100:3.0f} % used"
        label = _text(row.get("scope"))
        lines += _bar_line(label, share, tail, screen)
        facts = [f"{size(available)} of {size(total)} available", *_scope_facts(row)]
        lines += _sentence("; ".join(facts), screen, limits, indent=_INDENT * 2)
    return lines + _count_rest(len(rows), limits.scopes, "scopes", limits)


def _scope_facts(row: Mapping[str, object]) -> list[str]:
    facts = []
    swap_total, swap_free = _number(row.get("swap_total_bytes")), _number(row.get("swap_free_bytes"))
    if swap_total and swap_free is not None:
        facts.append(f"swap {size(swap_free)} of {size(swap_total)} free")
    elif swap_total == 0:
        facts.append("no swap")
    some, full = _number(row.get("psi_some_percent")), _number(row.get("psi_full_percent"))
    if some is not None or full is not None:
        facts.append(f"pressure some {_percent(some)}, full {_percent(full)}")
    seconds = _number(row.get("seconds_to_exhaustion"))
    if seconds is not None:
        facts.append(f"exhausted in {_seconds(seconds)}")
    fall = _number(row.get("fall_bytes_per_second"))
    if fall is not None and fall > 0:
        facts.append(f"falls by {size(fall)} a second")
    look = _number(row.get("next_look_ms"))
    if look is not None:
        facts.append(f"next look in {look:.0f} ms")
    return facts


# -- rules -------------------------------------------------------------------------------------------------------


def _render_rules(
    rows: list[Mapping[str, object]],
    row_by_scope: Mapping[str, Mapping[str, object]],
    screen: _Screen,
    limits: _Limits,
) -> list[str]:
    lines = [_heading("rules: how near to firing", screen)]
    if not rows:
        lines.append(f"{_INDENT}none")
    # What fires first is shown first; sorted() keeps the order of the configuration among equals.
    ordered = sorted(rows, key=lambda row: (not row.get("is_active"), -_nearness_of(row, row_by_scope)))
    for row in ordered[: limits.rules]:
        scope = _text(row.get("scope"))
        label = _text(row.get("rule")) + (f" in {scope}" if scope not in ("", "machine") else "")
        nearness = _nearness_of(row, row_by_scope)
        lines += _bar_line(label, max(nearness, 0.0), f" {_standing_of_rule(row, nearness)}", screen)
        for condition in _rows(row, "conditions"):
            lines += _sentence(_describe_condition(condition), screen, limits, indent=_INDENT * 2)
        if row.get("is_active") or not limits.is_brief:
            steps = row.get("steps")
            names = ", then ".join(_text(step) for step in steps) if isinstance(steps, list) else ""
            taken = _number(row.get("steps_taken")) or 0
            done = f" ({taken:.0f} taken)" if taken else ""
            if names:
                lines += _sentence(f"does: {names}{done}", screen, limits, indent=_INDENT * 2)
    return lines + _count_rest(len(rows), limits.rules, "rules", limits)


def _standing_of_rule(row: Mapping[str, object], nearness: float) -> str:
    held = _number(row.get("held_s"))
    if row.get("is_active"):
        return "FIRED"
    if nearness < 0:
        return "UNREADABLE"
    return f"holds {_seconds(held)}" if held is not None else f"{nearness * 100:3.0f} %"


def _nearness_of(row: Mapping[str, object], row_by_scope: Mapping[str, Mapping[str, object]]) -> float:
    """0 to 1, the farthest of its conditions; -1 when one of them cannot be read."""
    scope = row_by_scope.get(_text(row.get("scope")), {})
    shares = []
    for condition in _rows(row, "conditions"):
        measured, distance = _number(condition.get("measured")), _number(condition.get("distance"))
        text, unit = _text(condition.get("text")), _text(condition.get("unit"))
        if condition.get("is_met"):
            shares.append(1.0)
        elif measured is None or distance is None:
            # Nothing runs out, so no time is told: that is far away, and no lack of the machine.
            shares.append(0.0 if unit == "s" else -1.0)
        else:
            whole = _number(scope.get("swap_total_bytes" if text.startswith("swap_free") else "total_bytes"))
            is_below = "<" in text
            shares.append(
                find_nearness(measured=measured, distance=distance, is_below=is_below, unit=unit, whole=whole)
            )
    return min(shares, default=0.0)


def _describe_condition(condition: Mapping[str, object]) -> str:
    text, unit = _text(condition.get("text")), _text(condition.get("unit"))
    measured, distance = _number(condition.get("measured")), _number(condition.get("distance"))
    if measured is None:
        return f"{text}: {'memory does not run out' if unit == 's' else 'not told here'}"
    now = f"{text}: now {_amount(measured, unit)}"
    if condition.get("is_met"):
        return f"{now}, met"
    verb = "fall" if "<" in text else "rise"
    return now if distance is None else f"{now}, to {verb} by {_amount(distance, unit)}"


# -- processes ---------------------------------------------------------------------------------------------------


def _render_victims(rows: list[Mapping[str, object]], screen: _Screen, limits: _Limits) -> list[str]:
    lines = [_heading("being worked on", screen)] if rows else []
    for row in rows[: limits.processes]:
        since = _number(row.get("since_s"))
        age = "" if since is None else f" since {_seconds(since)}"
        lines += _sentence(f"{_name_process(row)}: {_text(row.get('state'))}{age}", screen, limits)
    return lines + _count_rest(len(rows), limits.processes, "victims", limits)


def _render_ranking(state: Mapping[str, object], screen: _Screen, limits: _Limits) -> list[str]:
    rows = _rows(state, "ranking")
    ranked = [row for row in rows if row.get("rank") is not None]
    small = [row for row in rows if row.get("standing") == "too_small"]
    kept = [row for row in rows if row.get("standing") == "protected"]
    counts = state.get("counts")
    count_by_name = counts if isinstance(counts, dict) else {}
    considered = int(_number(count_by_name.get("considered")) or 0)
    eligible = int(_number(count_by_name.get("eligible")) or 0)
    protected = int(_number(count_by_name.get("protected")) or 0)
    title = f"who would die: {eligible} of {considered} processes are eligible"
    lines = [_heading(title if considered else "who would die: nobody has been looked at yet", screen)]
    if ranked:
        lines.append(_INDENT + _process_head(screen))
    for row in ranked[: limits.processes]:
        lines += _process_lines(row, screen, limits)
    lines += _count_rest(max(eligible, len(ranked)), min(limits.processes, len(ranked)), "processes", limits)
    if not limits.is_brief:
        lines += _list_others(small, len(small), "too small to be worth a kill", screen, limits)
    return lines + _list_others(kept, protected, "protected", screen, limits)


def _process_head(screen: _Screen) -> str:
    head = f"{'#':>2} {'PID':>7} {'NAME':<{_NAME_COLUMNS}} {'GIVES':>9}"
    return head if screen.columns < _WIDE else f"{head} {'GREW':>9} {'ADJ':>5}  WHY"


def _process_lines(row: Mapping[str, object], screen: _Screen, limits: _Limits) -> list[str]:
    name = _fit(_text(row.get("comm")), _NAME_COLUMNS)
    rank, pid = _number(row.get("rank")), _number(row.get("pid"))
    head = f"{rank or 0:>2.0f} {pid or 0:>7.0f} {name:<{_NAME_COLUMNS}} {_size(row.get('gain_bytes')):>9}"
    grew, adj = _size(row.get("growth_bytes")), _number(row.get("oom_score_adj"))
    shown_adj = "-" if adj is None else f"{adj:.0f}"
    why = _reasons_of(row)
    if row.get("standing") == "avoided":
        why = f"avoided: {why}"
    points = f"points {_size(row.get('points_bytes'))}"
    line = f"{_INDENT}{head} {grew:>9} {shown_adj:>5}  "
    room = screen.columns - len(line)
    if screen.columns < _WIDE:
        detail = _sentence(f"grew {grew}, adj {shown_adj}; {why}", screen, limits, indent=_INDENT * 2)
        lines = [_fit(_INDENT + head, screen.columns), *detail]
    elif limits.is_brief or len(why) <= room:
        lines = [line + _fit(why, room)]
    else:
        lines = [line.rstrip(), *_sentence(why, screen, limits, indent=_INDENT * 3)]
    return lines + _more_of(row, points, screen, limits)


def _more_of(row: Mapping[str, object], points: str, screen: _Screen, limits: _Limits) -> list[str]:
    """What a post-mortem wants to know besides; only where everything is shown."""
    if limits.processes != _ALL:
        return []
    uid, age = _number(row.get("uid")), _number(row.get("age_s"))
    facts = [points, "" if uid is None else f"uid {uid:.0f}", "" if age is None else f"runs for {_seconds(age)}"]
    unit = _text(row.get("kill_unit"))
    if unit not in ("", "process"):
        facts.append(f"dies with its {unit} {_text(row.get('kill_unit_key'))}")
    shmem = _number(row.get("shmem_bytes"))
    if shmem:
        facts.append(f"shared memory {size(shmem)}, which a kill may not give back")
    facts += [f"{key} {value}" for key in ("exe", "cmdline", "cgroup") if (value := _text(row.get(key)))]
    return _sentence("; ".join(fact for fact in facts if fact), screen, limits, indent=_INDENT * 3)


def _list_others(
    rows: list[Mapping[str, object]], count: int, title: str, screen: _Screen, limits: _Limits
) -> list[str]:
    """Those without a rank, largest first, a line each."""
    total = max(count, len(rows))
    if not total:
        return []
    if not limits.protected:
        return [_heading(f"{title}: {total} (--all)", screen)]
    lines = [_heading(f"{title}: {total}", screen)]
    for row in rows[: limits.protected]:
        text = f"{_name_process(row)}, {_size(row.get('gain_bytes'))}: {_reasons_of(row)}"
        lines += _sentence(text, screen, limits)
    return lines + _count_rest(
        total, min(limits.protected, len(rows)), "protected" if title == "protected" else "small", limits
    )


def _name_process(row: Mapping[str, object]) -> str:
    pid = _number(row.get("pid"))
    return f"{_text(row.get('comm')) or 'unnamed'} ({'pid not told' if pid is None else f'{pid:.0f}'})"


def _reasons_of(row: Mapping[str, object]) -> str:
    reasons = row.get("reasons")
    texts = [_text(reason) for reason in reasons] if isinstance(reasons, list) else []
    return "; ".join(text for text in texts if text) or "no reason was noted"


def _render_last(rows: list[Mapping[str, object]], screen: _Screen, limits: _Limits) -> list[str]:
    if not rows:
        return []
    if not limits.last:
        return [_heading(f"last incidents: {len(rows)} (--all)", screen)]
    lines = [_heading("last incidents", screen)]
    for row in rows[-limits.last :]:
        what = _text(row.get("outcome")) or _text(row.get("event")) or "incident"
        freed = _number(row.get("freed_bytes"))
        parts = [
            f"{_text(row.get('time'))} {what}".strip(),
            _name_process(row) if row.get("pid") is not None else "",
            "" if freed is None else f"{size(freed)} back",
            _text(row.get("reason")) or _text(row.get("text")),
        ]
        lines += _sentence(", ".join(part for part in parts if part), screen, limits)
    return lines + _count_rest(len(rows), limits.last, "incidents", limits)


# -- layout ------------------------------------------------------------------------------------------------------


def _heading(text: str, screen: _Screen) -> str:
    text = _fit(text, screen.columns)
    return f"{_BOLD}{text}{_RESET}" if screen.use_color else text


def _bar_line(label: str, share: float, tail: str, screen: _Screen) -> list[str]:
    """``label [####....] tail`` in one line; the label above where it is too long for that."""
    columns = screen.bar_columns
    filled = round(min(share, 1.0) * columns)
    gauge = "#" * filled + "." * (columns - filled)
    room = screen.columns - len(_INDENT) - columns - len(" []") - len(tail)
    if screen.use_color:
        color = _RED if share >= 1 else _YELLOW if share >= _NEAR else _GREEN
        gauge = f"{color}{gauge}{_RESET}"
    if len(label) > room:
        return [_INDENT + _fit(label, screen.columns - len(_INDENT)), f"{_INDENT * 2}[{gauge}]{tail}"]
    # Gauges stand below each other where the names are of an ordinary length.
    return [f"{_INDENT}{label:<{min(room, _NAME_COLUMNS)}} [{gauge}]{tail}"]


def _sentence(text: str, screen: _Screen, limits: _Limits, *, indent: str = _INDENT) -> list[str]:
    if limits.is_brief:
        return [indent + _fit(text, screen.columns - len(indent))]
    import textwrap  # 5 ms that nobody pays who only wants the JSON

    return textwrap.wrap(
        text,
        screen.columns,
        initial_indent=indent,
        subsequent_indent=indent + _INDENT,
        break_long_words=True,
        break_on_hyphens=False,
    )


def _count_rest(total: int, shown: int, what: str, limits: _Limits) -> list[str]:
    if total <= shown:
        return []
    # A state names some of a thousand processes; the rest is not to be had from it.
    hint = "not told" if limits == _EVERYTHING else "--all"
    return [f"{_INDENT}{total - shown} more of the {what} ({hint})"]


def _fit(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: max(columns - len(_CUT), 0)] + _CUT


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    return _percent(value) if unit == "%" else f"{value:.1f} {unit}".rstrip()


def _percent(value: float | None) -> str:
    return "not told" if value is None else f"{value:.1f} %"


def _seconds(value: float) -> str:
    if value < 120:  # noqa: PLR2004 - two minutes: until then seconds are what a reader can feel
        return f"{value:.1f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _size(value: object) -> str:
    number = _number(value)
    return "-" if number is None else size(number)


# -- a state from the socket: nothing is taken for granted ----------------------------------------------------------


def _rows(holder: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = holder.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < _LARGEST_NUMBER else None


def _text(value: object) -> str:
    """Printable ASCII, so that no terminal obeys it, and widths and encodings hold; not a text: empty."""
    if not isinstance(value, str):
        return "" if value is None or isinstance(value, (dict, list)) else str(value)
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        character if " " <= character <= "~" else character.encode("unicode_escape").decode("ascii")
        for character in value
    )
