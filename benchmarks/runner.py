"""Side-by-side timing: contestants in turn in one process, medians of clean rounds, floors.

Three traps shape it. Idle OpenMP teams spin for some milliseconds and take the cores of whoever
runs next: the runner rests before each contestant and lets it warm up untimed. Neighbours change
the machine from minute to minute: contestants alternate, and ratios are medians of the ratios
within a round. The scheduler interrupts: rounds with an involuntary context switch are dropped
where enough others remain.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bar", "Case", "Clock", "Contestant", "Floor", "Meter", "Options", "Roof", "measure"]

BLOCK = 0.005  # seconds that a timed block takes at least
REST = 0.01  # seconds until libgomp's idle threads have stopped spinning
ROUNDS = (5, 300)  # fewest and most
WARM_UPS = 3  # the first compiles and touches memory, the others say how long a call takes
OURS = "saddlepoint"


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    device: str = "cpu"
    quick: bool = False
    data: Path | None = None
    seconds: float | None = None
    compile: bool = True  # torch.compile takes part

    def budget(self, seconds: float) -> float:
        """Of a case: what is asked for, or so many; a GPU needs fewer, a trial hardly any."""
        if self.seconds is not None:
            return self.seconds
        return 0.5 if self.quick else min(seconds, 10.0) if self.device == "cuda" else seconds


@dataclass(frozen=True)
class Contestant:
    """One way to do a case's work.

    ``read`` turns what ``call`` returns into an array to compare with the others'. Seconds are per
    unit, where a call does several.
    """

    name: str
    library: str
    call: Callable[[], Any]
    read: Callable[[Any], NDArray[Any]] | None = None
    units: int = 1
    note: str = ""


@dataclass(frozen=True)
class Roof:
    """A call that moves bytes or does flops as fast as the machine can, read in the same rounds."""

    name: str
    call: Callable[[], Any]
    work: float  # bytes or flops a call
    units: int = 1


@dataclass(frozen=True)
class Floor:
    """Work that nobody can avoid: ``amount`` bytes or flops, at the rate of the fastest roof."""

    amount: float
    unit: str  # "B" or "flop"
    formula: str
    roofs: tuple[str, ...]
    of: tuple[str, ...] = ()  # contestants it speaks of; all by default


@dataclass(frozen=True)
class Bar:
    """The least ratio we want to a peer: a library's best, or one contestant."""

    peer: str
    ratio: float


@dataclass(frozen=True)
class Case:
    """Contestants that do the same work. ``absent`` are libraries, with the reason."""

    name: str
    parameters: dict[str, Any]
    contestants: Sequence[Contestant]
    roofs: Sequence[Roof] = ()
    floors: Sequence[Floor] = ()
    bars: Sequence[Bar] = ()
    absent: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-4  # of max|difference| / max|ours|
    budget: float = 60.0  # seconds, shared out equally
    once: bool = False  # a call takes so long that the first one has to do


class Clock:
    """Seconds of work; what is left out does not count."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._left_out

    def leave_out(self, work: Callable[[], None], wait: Callable[[], None]) -> None:
        """Do ``work``, after all that was queued before it."""
        wait()
        began = time.perf_counter()
        work()
        wait()
        self._left_out += time.perf_counter() - began

    def instead(self, work: Callable[[], float]) -> None:
        """Do ``work`` and count the seconds that it returns, not those that pass here."""
        began = time.perf_counter()
        seconds = work()
        self._left_out += time.perf_counter() - began - seconds


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass(frozen=True)
class Meter:
    """Where times and counts come from; a test passes its own."""

    clock: Callable[[], float] = time.perf_counter
    interruptions: Callable[[], int] = _interruptions
    page_faults: Callable[[], int] = _page_faults
    rest: Callable[[float], None] = time.sleep
    synchronize: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Sample:
    seconds: float  # per unit
    clean: bool
    page_faults: float  # per call


def _enough(clean: set[int], all_: set[int]) -> set[int]:
    """The clean rounds; all of them where too few are clean."""
    return clean if len(clean) >= max(ROUNDS[0], len(all_) / 4) else all_


class _Entry:
    """A contestant or roof with its samples, by round."""

    def __init__(self, timed: Contestant | Roof, meter: Meter, once: bool) -> None:
        self.timed, self._meter = timed, meter
        self.samples: dict[int, _Sample] = {}
        self.calls = self.every = 1
        self.result, self.first_call = self._once()
        if once:
            self.samples[0] = _Sample(self.first_call / timed.units, True, 0.0)
            return
        self._seconds = min(self._once()[1] for _ in range(WARM_UPS - 1))
        self.calls = max(1, math.ceil(BLOCK / max(self._seconds, 1e-9)))

    def _once(self) -> tuple[Any, float]:
        began = self._meter.clock()
        result = self.timed.call()
        self._meter.synchronize()
        return result, self._meter.clock() - began

    def affordable(self, share: float) -> int:
        """Visits that cost ``share`` seconds."""
        visit = REST + (self.calls + 1) * self._seconds
        return int(min(max(share / visit, ROUNDS[0]), ROUNDS[1]))

    def visit(self, round_: int) -> None:
        if round_ % self.every:
            return
        call, meter, calls = self.timed.call, self._meter, range(self.calls)
        meter.rest(REST)
        call()
        meter.synchronize()
        interruptions, faults = meter.interruptions(), meter.page_faults()
        began = meter.clock()
        for _ in calls:
            call()
        meter.synchronize()
        seconds = meter.clock() - began
        self.samples[round_] = _Sample(
            seconds / self.calls / self.timed.units,
            meter.interruptions() == interruptions,
            (meter.page_faults() - faults) / self.calls,
        )

    @property
    def clean(self) -> set[int]:
        """Rounds without an interruption."""
        return {r for r, s in self.samples.items() if s.clean}

    @property
    def kept(self) -> dict[int, _Sample]:
        """The clean samples, or all where too few are clean."""
        return {r: self.samples[r] for r in _enough(self.clean, set(self.samples))}

    @property
    def median(self) -> float:
        return median(s.seconds for s in self.kept.values())

    def report(self) -> dict[str, Any]:
        kept = [s.seconds for s in self.kept.values()]
        return {
            "name": self.timed.name,
            "seconds": {"min": min(kept), "median": median(kept), "max": max(kept)},
            "repetitions": len(kept),
            "dropped": len(self.samples) - len(kept),
            "calls_per_repetition": self.calls,
            "units_per_call": self.timed.units,
            "first_call_seconds": self.first_call,
            "page_faults_per_call": median(s.page_faults for s in self.kept.values()),
        }


def measure(case: Case, meter: Meter | None = None) -> dict[str, Any]:
    """Time a case and report it as plain values.

    Raises
    ------
    RuntimeError
        If contestants do not compute the same.
    """
    meter = Meter() if meter is None else meter
    timed: list[Contestant | Roof] = [*case.contestants, *case.roofs]
    entries = {t.name: _Entry(t, meter, case.once) for t in timed}
    contestants = {c.name: entries[c.name] for c in case.contestants}
    deviations = _compared(case, contestants)
    if not case.once:
        _visit_in_turn(list(entries.values()), case.budget, meter.clock)
    roofs = {r.name: r.work / entries[r.name].median / r.units for r in case.roofs}
    ratios = _ratios(contestants)
    return {
        "case": case.name,
        "parameters": case.parameters,
        "contestants": [
            {
                "library": c.library,
                **contestants[c.name].report(),
                **({"note": c.note} if c.note else {}),
                **({"deviation": deviations[c.name]} if c.name in deviations else {}),
            }
            for c in case.contestants
        ],
        "absent": case.absent,
        "ratios": ratios,
        "roofs": [{**entries[r.name].report(), "rate": roofs[r.name]} for r in case.roofs],
        "floors": [_floor(floor, roofs, contestants) for floor in case.floors],
        "bars": _bars(case, contestants),
    }


def _visit_in_turn(entries: list[_Entry], budget: float, clock: Callable[[], float]) -> None:
    """Every contestant gets its share of the time; a slow one sits out rounds evenly.

    On a machine that has become slower, rounds end early, with the fewest from everybody.
    """
    visits = [e.affordable(budget / len(entries)) for e in entries]
    rounds = max(visits)
    for entry, affordable in zip(entries, visits, strict=True):
        entry.every = 2 ** int(math.log2(rounds / affordable))  # nested, so that rounds are shared
    collecting = gc.isenabled()
    gc.disable()
    began = clock()
    try:
        for round_ in range(rounds):
            late = clock() - began > 1.5 * budget
            if late and all(len(e.samples) >= ROUNDS[0] for e in entries):
                break
            first = round_ % len(entries)
            for entry in (*entries[first:], *entries[:first]):
                entry.visit(round_)
    finally:
        if collecting:
            gc.enable()


def _compared(case: Case, entries: dict[str, _Entry]) -> dict[str, float]:
    """How far each result is from the first; raises where that is too far."""
    deviations: dict[str, float] = {}
    reference: NDArray[Any] | None = None
    for contestant in case.contestants:
        if contestant.read is None:
            continue
        value = np.asarray(contestant.read(entries[contestant.name].result), np.float64)
        if reference is None:
            reference = value
            continue
        deviation = float(np.abs(value - reference).max() / np.abs(reference).max())
        if not deviation <= case.tolerance:
            raise RuntimeError(
                f"{case.name}: {contestant.name}: expected the same result within "
                f"{case.tolerance:g}, got a deviation of {deviation:.2g}"
            )
        deviations[contestant.name] = deviation
    for entry in entries.values():
        entry.result = None
    return deviations


def _ratio(ours: _Entry, peer: _Entry) -> float:
    """Median over shared rounds of the peer's time by ours."""
    shared = ours.samples.keys() & peer.samples.keys()
    rounds = _enough(shared & ours.clean & peer.clean, shared)
    return median(peer.samples[r].seconds / ours.samples[r].seconds for r in rounds)


def _best(entries: dict[str, _Entry], library: str) -> _Entry | None:
    of_library = [
        e
        for e in entries.values()
        if isinstance(e.timed, Contestant) and e.timed.library == library
    ]
    return min(of_library, key=lambda e: e.median, default=None)


def _libraries(entries: dict[str, _Entry]) -> list[str]:
    """The peers, in order of appearance."""
    timed = [e.timed for e in entries.values()]
    found = dict.fromkeys(t.library for t in timed if isinstance(t, Contestant))
    return [library for library in found if library != OURS]


def _ratios(entries: dict[str, _Entry]) -> dict[str, dict[str, Any]]:
    """Of each of our contestants to each peer's best."""
    result: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        if not isinstance(entry.timed, Contestant) or entry.timed.library != OURS:
            continue
        result[name] = {}
        for library in _libraries(entries):
            best = _best(entries, library)
            assert best is not None
            result[name][library] = {"best": best.timed.name, "ratio": _ratio(entry, best)}
    return result


def _floor(floor: Floor, roofs: dict[str, float], entries: dict[str, _Entry]) -> dict[str, Any]:
    there = [r for r in floor.roofs if r in roofs]
    report: dict[str, Any] = {
        "amount": floor.amount,
        "unit": floor.unit,
        "formula": floor.formula,
        "roof": None,
        "share": {},
    }
    if there:
        roof = max(there, key=lambda r: roofs[r])
        seconds = floor.amount / roofs[roof]
        names = [n for n in (floor.of or tuple(entries)) if n in entries]
        report["roof"] = {"name": roof, "rate": roofs[roof]}
        report["seconds"] = seconds
        report["share"] = {n: seconds / entries[n].median for n in names}
    return report


def _bars(case: Case, entries: dict[str, _Entry]) -> list[dict[str, Any]]:
    """What our best reaches against each bar whose peer took part."""
    ours = _best(entries, OURS)
    reports = []
    for bar in case.bars:
        peer = entries.get(bar.peer) or _best(entries, bar.peer)
        if ours is None or peer is None:
            continue
        ratio = _ratio(ours, peer)
        reports.append(
            {"peer": bar.peer, "at_least": bar.ratio, "ratio": ratio, "met": ratio >= bar.ratio}
        )
    return reports
