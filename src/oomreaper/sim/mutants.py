"""Runs the mutants: each must be caught by an invariant, and what is not mutated must run clean over the same seeds.

``run_mutants(seeds)`` tries seed after seed on a mutant's stages until an invariant breaks, then makes the schedule
shorter: a beginning of its choices that still breaks the same invariant, out of which parts are left out, or made 0
(the first runnable actor goes on), as long as it still does. What comes out is replayed once more with its trace.
``run_clean`` is the other half: the same stages, the same seeds, no defect, nothing found.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.sim import stages
from oomreaper.sim.checks import Violation
from oomreaper.sim.choice import Recorded, Replayed, Seeded
from oomreaper.sim.killers.registry import make_killer
from oomreaper.sim.mutations import all_mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.mutations import Mutant

# A trace is for people: the last steps before the breach tell the story.
_MOST_TRACE_LINES = 60
# Each try costs a run of a few ms; the schedules are a few dozen to a few hundred choices long.
_MOST_SHRINK_RUNS = 200


class MutantReport(NamedTuple):
    """What became of a mutant. ``steps``: of the shortened run; ``choices``: its schedule, replayed by ``Replayed``.

    ``is_expected``: it was caught by an invariant that its row names.
    """

    mutant: str
    caught: bool
    invariant: str | None
    seed: int | None
    steps: int
    trace: tuple[str, ...]
    text: str = ""
    choices: tuple[int, ...] = ()
    is_expected: bool = False
    is_ours: bool = False

    def as_json(self) -> dict[str, object]:
        """The record of ``oomreaper simulate mutants --json``."""
        return {
            "mutant": self.mutant,
            "caught": self.caught,
            "seed": self.seed,
            "steps": self.steps,
            "invariant": self.invariant,
            "what": self.text,
            "trace": list(self.trace),
        }


class CleanReport(NamedTuple):
    """What the unmutated code did: how many plays and steps, and the breaches, which there must not be."""

    plays: int
    steps: int
    violations: tuple[str, ...]


@contextlib.contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """For the time of a run, with its patches in place."""
    kept = [(patch, patch.owner.__dict__[patch.name]) for patch in mutant.patches]
    try:
        for patch, original in kept:
            setattr(patch.owner, patch.name, patch.make(original))
        yield
    finally:
        for patch, original in kept:
            setattr(patch.owner, patch.name, original)


def run_mutants(seeds: Iterable[int], mutants: Sequence[Mutant] | None = None) -> list[MutantReport]:
    """Every mutant of the table (or of ``mutants``), each over the seeds until it is caught."""
    tried = tuple(seeds)
    return [run_mutant(mutant, tried) for mutant in (all_mutants() if mutants is None else mutants)]


def run_mutant(mutant: Mutant, seeds: Sequence[int]) -> MutantReport:
    """One mutant; the first seed that shows it, with the shortest trace that was found."""
    with mutated(mutant):
        for seed in seeds:
            for play in _plays(mutant):
                recorded = Recorded(Seeded(seed))
                violation = _try(play, recorded)
                if violation is not None:
                    choices = shrink(play, recorded.choices, violation.invariant)
                    return _report(mutant, play, seed, choices)
    return MutantReport(mutant.name, caught=False, invariant=None, seed=None, steps=0, trace=(), is_ours=mutant.is_ours)


def run_clean(seeds: Iterable[int]) -> CleanReport:
    """Founding commit and our code as they are, on all stages on which mutants are looked for."""
    plays = steps = 0
    violations: list[str] = []
    for seed in seeds:
        for name, play in _clean_plays():
            plays += 1
            try:
                steps += play(Seeded(seed), False)
            except Violation as violation:
                violations.append(f"{name}, seed {seed}: {violation}")
    return CleanReport(plays, steps, tuple(violations))


def shrink(play: Callable[[Chooser, bool], int], choices: Sequence[int], invariant: str) -> list[int]:
    """A shorter schedule that breaks the same invariant: a beginning of it, with parts left out or made 0."""
    runs = 0

    def breaks(candidate: Sequence[int]) -> bool:
        nonlocal runs
        runs += 1
        violation = _try(play, Replayed(candidate))
        return violation is not None and violation.invariant == invariant

    best = list(choices)
    length = 0
    while length < len(best) and not breaks(best[:length]):  # beyond a beginning every choice is 0
        length = max(1, 2 * length)
    del best[length:]
    width = max(1, len(best) // 2)
    while best and runs < _MOST_SHRINK_RUNS:
        start = 0
        while start < len(best) and runs < _MOST_SHRINK_RUNS:
            without = [*best[:start], *best[start + width :]]
            if breaks(without):
                best = without
                continue
            part = best[start : start + width]
            if any(part):
                zeroed = [*best[:start], *[0] * len(part), *best[start + width :]]
                if breaks(zeroed):
                    best = zeroed
            start += width
        if width == 1:
            break
        width //= 2
    while best and best[-1] == 0:
        del best[-1]
    return best


def _try(play: Callable[[Chooser, bool], int], chooser: Chooser) -> Violation | None:
    try:
        play(chooser, False)
    except Violation as violation:
        return violation
    return None


def _report(mutant: Mutant, play: Callable[[Chooser, bool], int], seed: int, choices: Sequence[int]) -> MutantReport:
    try:
        play(Replayed(choices), True)
    except Violation as violation:
        engine = violation.machine.engine  # type: ignore[attr-defined] # stages put it there
        lines = engine.trace[-_MOST_TRACE_LINES:]
        start_ns = engine.trace[0].now_ns if engine.trace else 0
        trace = tuple(f"{(line.now_ns - start_ns) / 1e6:.3f} ms {line.actor}: {line.what}" for line in lines)
        return MutantReport(
            mutant.name,
            caught=True,
            invariant=violation.invariant,
            seed=seed,
            steps=engine.steps,
            trace=trace,
            text=violation.text,
            choices=tuple(choices),
            is_expected=violation.invariant in mutant.expected,
            is_ours=mutant.is_ours,
        )
    message = f"the schedule of the mutant {mutant.name!r} does not replay"
    raise AssertionError(message)


def _plays(mutant: Mutant) -> list[Callable[[Chooser, bool], int]]:
    if mutant.killer is None:
        return [*map(_our_play, mutant.our_stages), *map(_watch_play, mutant.watch_stages)]
    return [_kernel_play(mutant.killer, stage) for stage in mutant.kernel_stages]


def _clean_plays() -> list[tuple[str, Callable[[Chooser, bool], int]]]:
    kernel = [
        (f"{name} on {stage.__name__}", _kernel_play(lambda name=name: make_killer(name), stage))  # type: ignore[misc]
        for name in ("founding", "later", "oom_killer")
        for stage in stages.KERNEL_STAGES
    ]
    ours = [(f"ours on {stage.name}", _our_play(stage)) for stage in stages.OUR_STAGES]
    watched = [(f"watcher on {stage.__name__}", _watch_play(stage)) for stage in stages.WATCH_STAGES]
    return [*kernel, *ours, *watched]


def _kernel_play(make: Callable[[], object], stage: Callable[..., None]) -> Callable[[Chooser, bool], int]:
    return lambda chooser, with_trace: stages.play(chooser, make(), stage, with_trace=with_trace).steps  # type: ignore[arg-type]


def _our_play(stage: stages.OurStage) -> Callable[[Chooser, bool], int]:
    return lambda chooser, with_trace: (
        stages.play_ours(chooser, make_killer("none"), stage, with_trace=with_trace).steps
    )


def _watch_play(stage: Callable[..., None]) -> Callable[[Chooser, bool], int]:
    return lambda chooser, with_trace: (
        stages.play_watch(chooser, make_killer("none"), stage, with_trace=with_trace).steps
    )
