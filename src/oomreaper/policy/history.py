"""What a scope's memory did in the last minute: shares of stalled time, and how fast it falls. Pure.

It knows the samples of one scope, in the order in which they were taken. It refuses to know what a threshold is.

How it works. The latest sample is kept whole; of the earlier ones only three numbers, each in a ``_Track``: what can
still be taken (available memory and free swap together), and the two totals of stalled time. A track is thinned as it
ages, so that a thousand looks a second cost no more memory than one: a point each 16 ms for the last 2.5 s, and for
the stalls one each 250 ms for a minute beyond that. What lies between two points is taken as a straight line.

* A share of stalled time is the growth of the kernel's total over a window, never one of its averages, which lag
  behind by 2 s. While there is less history than the window asks for, the rest counts as not stalled: a share is
  never overstated.
* Memory counts as falling when it fell in *each* of the last three half seconds; the slowest of them is the rate. A
  brief dip, or a program that takes and gives back, is no fall; and nothing is forecast from less than 1.5 s.
* The fastest fall is what the next look is timed by; it is taken over 16 ms or more, since the kernel counts free
  pages in batches for each CPU, and a millisecond shows more of that than of the memory.
* A total of stalled time that went backwards means that the group was made anew: all before it is forgotten. When the
  size of memory or of swap changes (a new limit, swapoff), what was seen of the fall is forgotten: nobody took that.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oomreaper.model.sample import ScopeSample

_MS = 1_000_000
_SECOND = 1_000_000_000
_NS_PER_US = 1_000
_PER_CENT = 100.0

# Fine enough for the shortest window of a pressure (0.5 s) and for a fall at 60 GiB/s to show within one GiB.
_FINE_SPACING_NS = 16 * _MS
# The three half seconds of a fall, and one second to spare for a look that came late.
_FINE_SPAN_NS = 2_500 * _MS
# A straight line over 250 ms errs by less than 250 ms of stall in a window of more than 2.5 s.
_COARSE_SPACING_NS = 250 * _MS
# The longest window of a pressure is 60 s; some more, so that there is a point on its far side.
_COARSE_SPAN_NS = 65 * _SECOND
_SLICE_NS = 500 * _MS
_SLICES = 3
# The fastest fall is remembered for one to two of these: as long as a burst may pause and still be the same one.
_PEAK_SPAN_NS = 1_500 * _MS
# Larger than any memory or uptime, and fits the 64 bits of an array.
_HIGHEST = 1 << 61


class ScopeHistory:
    """The last minute of one scope."""

    __slots__ = (
        "_fall",
        "_full",
        "_headroom",
        "_is_fall_measured",
        "_latest",
        "_peak",
        "_peak_before",
        "_peak_since_ns",
        "_shares",
        "_some",
    )

    def __init__(self) -> None:
        self._latest: ScopeSample | None = None
        self._headroom = _Track(coarse_span_ns=0)
        self._some = _Track(coarse_span_ns=_COARSE_SPAN_NS)
        self._full = _Track(coarse_span_ns=_COARSE_SPAN_NS)
        # What several rules ask of the same sample is worked out once.
        self._shares: dict[int, float] = {}
        self._fall: float | None = None
        self._is_fall_measured = False
        self._peak = 0.0
        self._peak_before = 0.0
        self._peak_since_ns = 0

    @property
    def latest(self) -> ScopeSample | None:
        """The newest sample; None before the first."""
        return self._latest

    @property
    def points(self) -> int:
        """How many numbers it keeps; bounded."""
        return sum(track.points for track in (self._headroom, self._some, self._full))

    def add(self, sample: ScopeSample) -> bool:
        """Take a sample in; False, and nothing changed, when it is not newer than the latest."""
        before = self._latest
        now_ns = sample.monotonic_ns
        some_us, full_us = sample.psi_some_us, sample.psi_full_us
        if before is not None:
            if now_ns <= before.monotonic_ns:
                return False
            if (some_us is not None and some_us < self._some.latest) or (
                full_us is not None and full_us < self._full.latest
            ):
                self._forget_stalls()
                self._forget_fall()
            elif sample.total_bytes != before.total_bytes or sample.swap_total_bytes != before.swap_total_bytes:
                self._forget_fall()
        self._latest = sample
        self._is_fall_measured = False
        if self._shares:
            self._shares.clear()
        if some_us is not None:
            self._some.add(now_ns, some_us)
        if full_us is not None:
            self._full.add(now_ns, full_us)
        fallen = self._headroom.add(now_ns, _headroom_of(sample))
        if fallen is not None:
            self._note_peak(now_ns, fallen)
        return True

    def restart(self) -> None:
        """Begin anew from the latest sample: what a victim that has gone had caused is held against nobody else."""
        latest = self._latest
        self._forget_stalls()
        self._forget_fall()
        if latest is None:
            return
        now_ns = latest.monotonic_ns
        if latest.psi_some_us is not None:
            self._some.add(now_ns, latest.psi_some_us)
        if latest.psi_full_us is not None:
            self._full.add(now_ns, latest.psi_full_us)
        self._headroom.add(now_ns, _headroom_of(latest))

    def psi_share_percent(self, window_ns: int, *, is_full: bool) -> float | None:
        """The share of the last ``window_ns`` in which tasks waited for memory, 0 to 100; None: not told here."""
        latest = self._latest
        if latest is None or window_ns <= 0:
            return None
        total_us = latest.psi_full_us if is_full else latest.psi_some_us
        if total_us is None:
            return None
        key = window_ns if is_full else -window_ns
        share = self._shares.get(key)
        if share is None:
            track = self._full if is_full else self._some
            stalled_us = track.latest - track.value_at(latest.monotonic_ns - window_ns)
            share = min(_PER_CENT, max(0.0, _PER_CENT * _NS_PER_US * stalled_us / window_ns))
            self._shares[key] = share
        return share

    def fall_bytes_per_second(self) -> float:
        """How fast what can still be taken has been falling for 1.5 s; 0: it has not, or was not watched so long."""
        return self._read_fall() or 0.0

    def fastest_fall_bytes_per_second(self) -> float:
        """The fastest fall of the last seconds, however brief; 0 when there was none."""
        return max(self._peak, self._peak_before)

    def time_to_exhaustion_seconds(self) -> float | None:
        """When memory and swap are used up, if they go on falling as they do: infinity if they do not.

        None: not watched for long enough, or the group has no limit.
        """
        latest = self._latest
        if latest is None or latest.total_bytes <= 0:
            return None
        headroom = _headroom_of(latest)
        if headroom == 0:
            return 0.0
        fall = self._read_fall()
        if fall is None:
            return None
        return headroom / fall if fall > 0 else math.inf

    def _read_fall(self) -> float | None:
        if not self._is_fall_measured:
            self._fall = self._measure_fall()
            self._is_fall_measured = True
        return self._fall

    def _measure_fall(self) -> float | None:
        track = self._headroom
        end_ns = track.latest_ns
        if not track.has_from(end_ns - _SLICES * _SLICE_NS):
            return None
        slowest = math.inf
        later: float = track.latest
        for number in range(1, _SLICES + 1):
            earlier = track.value_at(end_ns - number * _SLICE_NS)
            fall = earlier - later
            if fall <= 0:
                return 0.0
            slowest = min(slowest, fall)
            later = earlier
        return slowest * _SECOND / _SLICE_NS

    def _note_peak(self, now_ns: int, fall_bytes_per_second: float) -> None:
        age_ns = now_ns - self._peak_since_ns
        if age_ns >= _PEAK_SPAN_NS:
            self._peak_before = self._peak if age_ns < 2 * _PEAK_SPAN_NS else 0.0
            self._peak = 0.0
            self._peak_since_ns = now_ns
        self._peak = max(self._peak, fall_bytes_per_second)

    def _forget_stalls(self) -> None:
        self._some.clear()
        self._full.clear()
        self._shares.clear()

    def _forget_fall(self) -> None:
        self._headroom.clear()
        self._is_fall_measured = False
        self._peak = self._peak_before = 0.0


def _headroom_of(sample: ScopeSample) -> int:
    """What can still be taken: as memory fills, cold pages go to swap, so the two are one supply."""
    headroom = sample.available_bytes + sample.swap_free_bytes
    return headroom if headroom > 0 else 0


class _Track:
    """One number over time, thinned as it ages: fine and coarse points, and the latest, which may be no point yet."""

    __slots__ = (
        "_coarse_ns",
        "_coarse_span_ns",
        "_coarse_values",
        "_fine_ns",
        "_fine_values",
        "latest",
        "latest_ns",
    )

    def __init__(self, *, coarse_span_ns: int) -> None:
        self._coarse_span_ns = coarse_span_ns
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._fine_ns = array("q")
        self._fine_values = array("q")
        self._coarse_ns = array("q")
        self._coarse_values = array("q")
        self.latest = 0
        self.latest_ns = 0

    @property
    def points(self) -> int:
        """How many points it keeps."""
        return len(self._fine_ns) + len(self._coarse_ns)

    def has_from(self, when_ns: int) -> bool:
        """Whether it reaches back to a time."""
        times = self._coarse_ns or self._fine_ns
        return bool(times) and times[0] <= when_ns

    def add(self, now_ns: int, value: int) -> float | None:
        """Take in a value that is newer than the latest.

        Returns:
            How fast it fell since the last fine point, a second (negative: it rose); None when that is too near.
        """
        value = min(value, _HIGHEST)
        self.latest, self.latest_ns = value, now_ns
        times = self._fine_ns
        if not times:
            times.append(now_ns)
            self._fine_values.append(value)
            return None
        elapsed_ns = now_ns - times[-1]
        if elapsed_ns < _FINE_SPACING_NS:
            return None
        fallen = (self._fine_values[-1] - value) * _SECOND / elapsed_ns
        times.append(now_ns)
        self._fine_values.append(value)
        if times[0] < now_ns - _FINE_SPAN_NS:
            self._age(now_ns)
        return fallen

    def value_at(self, when_ns: int) -> float:
        """The value at a time, on a straight line between the points around it; before the first: the first."""
        times, values = self._fine_ns, self._fine_values
        if not times or when_ns >= self.latest_ns:
            return self.latest
        if when_ns >= times[-1]:
            return _between(when_ns, times[-1], values[-1], self.latest_ns, self.latest)
        if when_ns >= times[0]:
            index = bisect_right(times, when_ns)
            return _between(when_ns, times[index - 1], values[index - 1], times[index], values[index])
        coarse_ns, coarse = self._coarse_ns, self._coarse_values
        if not coarse_ns or when_ns <= coarse_ns[0]:
            return coarse[0] if coarse_ns else values[0]
        if when_ns >= coarse_ns[-1]:
            return _between(when_ns, coarse_ns[-1], coarse[-1], times[0], values[0])
        index = bisect_right(coarse_ns, when_ns)
        return _between(when_ns, coarse_ns[index - 1], coarse[index - 1], coarse_ns[index], coarse[index])

    def _age(self, now_ns: int) -> None:
        """Make coarse points of the fine ones that grew old, and forget the coarse ones that nobody asks for."""
        times, values = self._fine_ns, self._fine_values
        coarse_ns, coarse = self._coarse_ns, self._coarse_values
        oldest_ns = now_ns - _FINE_SPAN_NS
        # The youngest point on the far side of the span stays fine: a line to it reaches over the whole span.
        while len(times) > 1 and times[1] <= oldest_ns:
            when_ns, value = times.pop(0), values.pop(0)
            if self._coarse_span_ns and (not coarse_ns or when_ns - coarse_ns[-1] >= _COARSE_SPACING_NS):
                coarse_ns.append(when_ns)
                coarse.append(value)
        while len(coarse_ns) > 1 and coarse_ns[1] <= now_ns - self._coarse_span_ns:
            coarse_ns.pop(0)
            coarse.pop(0)


def _between(when_ns: int, before_ns: int, before: int, after_ns: int, after: int) -> float:
    return before + (after - before) * (when_ns - before_ns) / (after_ns - before_ns)
