"""The page that people read, made of the results alone: JSON to Markdown. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.records import Bar, Judge, Measure, Verdict, read_measure, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.figure import Figure

_HEAD = """\
# Benchmarks

<!-- Made by `make bench` from bench/results/latest.json and bench/notes.md: change those, not this page. -->

What the Budgets table promises, measured. Where time is involved, the figure is a ratio: both sides ran in
turn in one run, and the median of the paired ratios counts.
"""

_REPEAT = """\
## How to repeat it

```
make bench                                     # all of it, some minutes; writes bench/results/latest.json and this page
.venv/bin/python -m bench --figure stuck       # one figure; the others stay as they are
.venv/bin/python -m bench watch                # the figures of the watcher; `reap`: those of one victim
.venv/bin/python -m bench --calm 300           # wait up to 300 s for the machine to be calm before each figure
.venv/bin/python -m bench --quick              # does the bench work at all? Small victims, results under build/
```

It wants root, a C compiler, and about 5 GB of free memory. It makes its victims itself, signals nobody else, and leaves
nothing behind. Every raw sample is in the JSON file.
"""

_COUNTED = ("errno", "faults", "end")
_SMALL = 10


def render(results: Mapping[str, Any], figures: Iterable[Figure], notes: str) -> str:
    """The whole page. ``figures`` tell how each was measured; ``notes`` are written by hand."""
    found = [(figure, results["figures"][figure.name]) for figure in figures if figure.name in results["figures"]]
    parts = [_HEAD, _machine(results), _verdicts(found)]
    parts += [_section(figure, record) for figure, record in found]
    parts += [notes.strip() + "\n", _REPEAT]
    return "\n".join(parts)


def _machine(results: Mapping[str, Any]) -> str:
    facts = results["machine"]
    where = "a virtual machine" if facts["is_virtual"] else "bare metal"
    text = (
        f"Measured on {facts['kernel']}, {facts['processor']}, {facts['cpus']} CPUs, "
        f"{facts['memory_mib'] / 1024:.0f} GiB of memory, {facts['swap_mib']} MiB of swap, {where}; "
        f"{facts['python']}, {facts['compiler']}; oomreaper {facts['oomreaper']}.\n"
    )
    if results["is_quick"]:
        text += "\n**A quick run: it shows that the bench works, and no figure in it means anything.**\n"
    return text


def _verdicts(found: Sequence[tuple[Figure, Mapping[str, Any]]]) -> str:
    rows = [
        [figure.title, measure.title, _bar(measure.bar), _value(measure), f"**{measure.verdict.value}**"]
        for figure, record in found
        for measure in map(read_measure, record["measures"])
        if measure.bar is not None and measure.verdict is not Verdict.NO_BAR
    ]
    return "## Bars\n\n" + _table(("figure", "what", "bar", "measured", "verdict"), rows)


def _section(figure: Figure, record: Mapping[str, Any]) -> str:
    parts = [f"## {figure.title}\n", figure.method.strip() + "\n"]
    busy, stolen = f"{record['busy_percent_before']:.0f} %", f"{record['stolen_percent']:.1f} %"
    parts.append(
        f"Measured {record['date']} at {record['commit']}. In the two seconds before, the CPUs were busy for {busy} of "
        f"the time; meanwhile the hypervisor took {stolen}.\n"
    )
    measures = [read_measure(measure) for measure in record["measures"]]
    pairs = [measure for measure in measures if measure.judge is Judge.PAIRED_RATIO]
    if pairs:
        rows = [row for measure in pairs for row in _pair_rows(measure)]
        parts.append(_table(("what", "side", "n", "min", "quartile", "median", "quartile", "max"), rows))
        rows = [_ratio_row(measure) for measure in pairs]
        header = (
            "what: ratio, pair by pair",
            "min",
            "quartile",
            "median",
            "quartile",
            "max",
            "of the medians",
            "bar",
            "",
        )
        parts.append(_table(header, rows))
    series = [measure for measure in measures if measure.judge is not Judge.PAIRED_RATIO]
    if series:
        rows = [_series_row(measure) for measure in series]
        parts.append(_table(("what", "n", "min", "quartile", "median", "quartile", "max", "judged", "bar", ""), rows))
    for table in record["tables"]:
        parts += [f"{table['title']}:\n", _table(table["header"], table["rows"])]
    parts += [f"Not measured: {reason}.\n" for reason in record["missing"]]
    return "\n".join(parts)


def _pair_rows(measure: Measure) -> list[list[str]]:
    return [
        [f"{measure.title} ({measure.unit})", side, *_five(samples, measure.unit)]
        for side, samples in measure.sides.items()
    ]


def _ratio_row(measure: Measure) -> list[str]:
    assert measure.ratio_of_medians is not None
    ratios = _five(measure.ratios, "ratio")[1:]
    ratios[2] = f"**{ratios[2]}**"
    return [measure.title, *ratios, f"{measure.ratio_of_medians:.2f}", _bar(measure.bar), _verdict(measure)]


def _series_row(measure: Measure) -> list[str]:
    (samples, *_) = measure.sides.values()
    five = _five(samples, measure.unit)
    return [f"{measure.title} ({measure.unit})", *five, f"**{_value(measure)}**", _bar(measure.bar), _verdict(measure)]


def _five(samples: Sequence[float], unit: str) -> list[str]:
    summary = summarize(samples)
    return [str(summary.sample_count), *(number(value, unit) for value in summary[1:])]


def number(value: float, unit: str) -> str:
    """A figure in as many digits as mean something: none of a count, two of what is below ten, one of the rest."""
    if unit in _COUNTED:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < _SMALL else f"{value:.1f}"


def _value(measure: Measure) -> str:
    match measure.judge:
        case Judge.PAIRED_RATIO:
            return f"{measure.value:.2f}"
        case Judge.SHARE_OF_ZEROS:
            (samples, *_) = measure.sides.values()
            return f"{sum(sample == 0 for sample in samples)} of {len(samples)} are 0"
        case Judge.MEDIAN | Judge.LARGEST | Judge.P99:
            return f"{number(measure.value, measure.unit)} {measure.unit} ({measure.judge.value})"


def _bar(bar: Bar | None) -> str:
    if bar is None:
        return ""
    return f"at least {bar.limit:g} %" if bar.is_floor else f"at most {bar.limit:g}"


def _verdict(measure: Measure) -> str:
    return "" if measure.bar is None else measure.verdict.value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
