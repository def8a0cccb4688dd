"""What the bench finds: samples, what they come to, and whether that is within the bar. Pure.

The JSON file keeps every raw sample; what is derived from them is written beside them, for readers, and is derived anew
when the file is read.
"""

from __future__ import annotations

import enum
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 2
# Nanoseconds of a millisecond; finer than that no clock here is.
_DIGITS = 6


class Judge(enum.StrEnum):
    """Which number of a measure is held against the bar."""

    PAIRED_RATIO = "median of the paired ratios"
    MEDIAN = "median"
    LARGEST = "largest"
    P99 = "99th percentile"
    SHARE_OF_ZEROS = "per cent that are 0"


class Verdict(enum.StrEnum):
    """How a measure stands to its bar."""

    MET = "met"
    MISSED = "missed"
    NO_BAR = "no bar"


class Bar(NamedTuple):
    """What is wanted: at most ``limit``, or at least when ``is_floor``."""

    limit: float
    is_floor: bool = False

    def admits(self, value: float) -> bool:
        """Whether a value is within it."""
        return value >= self.limit if self.is_floor else value <= self.limit


class Summary(NamedTuple):
    """What samples come to."""

    sample_count: int
    smallest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    largest: float


class Measure(NamedTuple):
    """One comparison or one series.

    ``sides`` holds the samples by side, in the order in which they were taken. For PAIRED_RATIO there are two sides of
    equal length: sample n of each was taken right after the other, and the ratio is the first side's to the second's.
    For the other judges the first side is judged, and any other is for comparison.
    """

    name: str
    title: str
    unit: str
    sides: Mapping[str, Sequence[float]]
    judge: Judge
    bar: Bar | None = None

    @property
    def ratios(self) -> list[float]:
        """Pair by pair, the first side to the second; none unless pairs are what it is judged by."""
        if self.judge is not Judge.PAIRED_RATIO:
            return []
        ours, others = self.sides.values()
        return [mine / other for mine, other in zip(ours, others, strict=True)]

    @property
    def ratio_of_medians(self) -> float | None:
        """Of the first side's median to the second's."""
        if self.judge is not Judge.PAIRED_RATIO:
            return None
        ours, others = self.sides.values()
        return statistics.median(ours) / statistics.median(others)

    @property
    def value(self) -> float:
        """The one number that counts."""
        first = next(iter(self.sides.values()))
        match self.judge:
            case Judge.PAIRED_RATIO:
                return statistics.median(self.ratios)
            case Judge.MEDIAN:
                return statistics.median(first)
            case Judge.LARGEST:
                return max(first)
            case Judge.P99:
                return percentile(first, 99)
            case Judge.SHARE_OF_ZEROS:
                return 100 * sum(sample == 0 for sample in first) / len(first)

    @property
    def verdict(self) -> Verdict:
        """Whether it is within its bar."""
        if self.bar is None:
            return Verdict.NO_BAR
        return Verdict.MET if self.bar.admits(self.value) else Verdict.MISSED

    def as_json(self) -> dict[str, Any]:
        """Samples and what they come to."""
        # Rounded first, so that whoever derives it anew from the file comes to the same.
        sides = {name: [_rounded(sample) for sample in samples] for name, samples in self.sides.items()}
        return _measure_as_json(self._replace(sides=sides))


class Table(NamedTuple):
    """Rows for the page that are no measure: a breakdown."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Findings(NamedTuple):
    """What one figure came to. ``missing`` says why it could not be measured, wholly or in part."""

    measures: Sequence[Measure] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "measures": [measure.as_json() for measure in self.measures],
            "tables": [table._asdict() for table in self.tables],
            "missing": list(self.missing),
        }


def read_measure(record: Mapping[str, Any]) -> Measure:
    """A measure from its JSON; only the samples and the bar are believed, the rest follows from them."""
    bar = record["bar"]
    return Measure(
        name=record["name"],
        title=record["title"],
        unit=record["unit"],
        sides={name: side["samples"] for name, side in record["sides"].items()},
        judge=Judge(record["judged_by"]),
        bar=None if bar is None else Bar(**bar),
    )


def summarize(samples: Sequence[float]) -> Summary:
    """Five numbers and how many they stand for; quartiles by linear interpolation."""
    if len(samples) == 1:
        return Summary(1, *([samples[0]] * 5))
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(len(samples), min(samples), lower, median, upper, max(samples))


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that so many per cent of them do not exceed: of 100, the 99th of 99 per cent."""
    return sorted(samples)[max(0, -(-len(samples) * percent // 100) - 1)]


def _measure_as_json(measure: Measure) -> dict[str, Any]:
    ratios, ratio_of_medians = measure.ratios, measure.ratio_of_medians
    return {
        "name": measure.name,
        "title": measure.title,
        "unit": measure.unit,
        "judged_by": measure.judge.value,
        "bar": None if measure.bar is None else measure.bar._asdict(),
        "value": _rounded(measure.value),
        "verdict": measure.verdict.value,
        "ratio_of_medians": None if ratio_of_medians is None else _rounded(ratio_of_medians),
        "ratios": _summary_as_json(ratios) if ratios else None,
        "sides": {
            name: {"summary": _summary_as_json(samples), "samples": list(samples)}
            for name, samples in measure.sides.items()
        },
    }


def _summary_as_json(samples: Sequence[float]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in summarize(samples)._asdict().items()}


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
