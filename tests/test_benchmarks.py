"""The runner's statistics on a clock of our own, the benches end to end, and the README's table."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saddlepoint.torch.optim as torch_optim
from saddlepoint import norm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the benches are no part of the package

from benchmarks import bench_batch_norm, bench_optim, peers, runner, table, tuned  # noqa: E402
from benchmarks.__main__ import NAMES, main  # noqa: E402
from benchmarks.runner import Bar, Case, Contestant, Floor, Meter, Options, Roof  # noqa: E402

pytestmark = pytest.mark.slow


class Machine:
    """A clock that moves only when work is done."""

    def __init__(self) -> None:
        self.now, self.interruptions, self.rested = 0.0, 0, 0.0

    def meter(self) -> Meter:
        return Meter(lambda: self.now, lambda: self.interruptions, lambda: 0, self._rest)

    def _rest(self, seconds: float) -> None:
        self.rested += seconds

    def work(
        self,
        seconds: float,
        slowdown: Callable[[int], float] = lambda visit: 1.0,
        interrupted: Callable[[int], bool] = lambda visit: False,
    ) -> Callable[[], float]:
        """Takes ``seconds`` (a block's worth, so one call a block) times the visit's slowdown."""
        count = 0

        def call() -> float:
            nonlocal count
            # Warm-up calls, then an untimed and a timed one each visit.
            visit = (count - runner.WARM_UPS) // 2
            count += 1
            self.now += seconds * (slowdown(visit) if visit >= 0 else 1.0)
            self.interruptions += visit >= 0 and interrupted(visit)
            return seconds

        return call


def ours(call: Callable[[], Any], **more: Any) -> Contestant:
    return Contestant("ours", "saddlepoint", call, **more)


def theirs(call: Callable[[], Any], name: str = "theirs", **more: Any) -> Contestant:
    return Contestant(name, "torch", call, **more)


def entry(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in report["contestants"] if c["name"] == name)
    return found


def test_ratios_are_of_the_same_round() -> None:
    """A neighbour slows whole rounds by up to nine: the ratio within each stays two."""
    machine = Machine()

    def slowdown(visit: int) -> float:
        return 1.0 + visit % 9

    a, b = machine.work(0.01, slowdown), machine.work(0.02, slowdown)
    report = runner.measure(Case("c", {}, [ours(a), theirs(b)], budget=1.0), machine.meter())
    assert report["ratios"]["ours"]["torch"] == {"best": "theirs", "ratio": pytest.approx(2.0)}
    assert entry(report, "ours")["seconds"]["min"] == pytest.approx(0.01)
    assert entry(report, "ours")["seconds"]["max"] > 0.05


def test_a_peer_counts_with_its_best() -> None:
    machine = Machine()
    contestants = [
        ours(machine.work(0.01)),
        theirs(machine.work(0.05), "slow"),
        theirs(machine.work(0.03), "fast"),
    ]
    bars = [Bar("torch", 2.5), Bar("slow", 6.0)]
    report = runner.measure(Case("c", {}, contestants, bars=bars, budget=1.0), machine.meter())
    assert report["ratios"]["ours"]["torch"]["best"] == "fast"
    assert [bar["met"] for bar in report["bars"]] == [True, False]
    assert [bar["ratio"] for bar in report["bars"]] == pytest.approx([3.0, 5.0])


@pytest.mark.parametrize("share", [3, 1])
def test_interrupted_rounds_are_dropped_where_enough_remain(share: int) -> None:
    """Every third round, or every round."""
    machine = Machine()

    def hit(visit: int) -> bool:
        return visit % share == 0

    call = machine.work(0.01, lambda visit: 100.0 if hit(visit) else 1.0, hit)
    report = runner.measure(Case("c", {}, [ours(call)], budget=1000.0), machine.meter())
    found = entry(report, "ours")
    if share == 3:
        assert found["seconds"]["max"] == pytest.approx(0.01)
        assert found["dropped"] == pytest.approx(found["repetitions"] / 2, abs=1)
    else:
        assert found["seconds"]["median"] == pytest.approx(1.0)
        assert found["dropped"] == 0


def test_interruptions_of_one_do_not_favour_the_other() -> None:
    """Ours is never clean, so that theirs may not show its clean rounds alone."""
    machine = Machine()
    a = machine.work(0.01, lambda visit: 1.0 if visit % 3 else 50.0, lambda visit: True)
    b = machine.work(
        0.02, lambda visit: 50.0 if visit % 3 == 1 else 1.0, lambda visit: visit % 3 > 0
    )
    report = runner.measure(Case("c", {}, [ours(a), theirs(b)], budget=1000.0), machine.meter())
    assert entry(report, "theirs")["dropped"] > 0
    assert report["ratios"]["ours"]["torch"]["ratio"] == pytest.approx(2.0)


def test_slow_contestants_sit_out_rounds() -> None:
    machine = Machine()
    fast, slow = machine.work(0.01), machine.work(1.0)
    case = Case("c", {}, [ours(fast), theirs(slow)], budget=20.0)
    report = runner.measure(case, machine.meter())
    assert entry(report, "ours")["repetitions"] == runner.ROUNDS[1]
    assert runner.ROUNDS[0] <= entry(report, "theirs")["repetitions"] < 20
    assert report["ratios"]["ours"]["torch"]["ratio"] == pytest.approx(100.0)
    assert machine.now + machine.rested < 2 * case.budget  # visits are rounded up to a power of two


def test_a_machine_that_slows_down_ends_the_rounds() -> None:
    machine = Machine()
    call = machine.work(0.01, lambda visit: 1.0 if visit < 20 else 100.0)
    case = Case("c", {}, [ours(call)], budget=3.0)
    report = runner.measure(case, machine.meter())
    assert 20 < entry(report, "ours")["repetitions"] < 30
    assert machine.now < 10 * case.budget  # 300 rounds would take 560 s


def test_quick_calls_are_repeated_within_a_block() -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 1e-4

    report = runner.measure(
        Case("c", {}, [ours(call, units=4)], budget=1.0), Meter(clock=lambda: now)
    )
    assert entry(report, "ours")["calls_per_repetition"] == 50
    assert entry(report, "ours")["seconds"]["median"] == pytest.approx(1e-4 / 4)


def test_floor_is_the_work_at_the_fastest_roof() -> None:
    machine = Machine()
    case = Case(
        "c",
        {},
        [ours(machine.work(0.08))],
        [Roof("slow", machine.work(0.01), 1e6), Roof("fast", machine.work(0.01), 2e6)],
        [Floor(4e6, "B", "all of it", ("slow", "fast")), Floor(1.0, "B", "none", ("absent",))],
        budget=1.0,
    )
    first, second = runner.measure(case, machine.meter())["floors"]
    assert first["roof"] == {"name": "fast", "rate": pytest.approx(2e8)}
    assert first["share"] == {"ours": pytest.approx(0.02 / 0.08)}
    assert second["roof"] is None


def test_contestants_must_compute_the_same() -> None:
    machine = Machine()

    def case(value: float) -> Case:
        return Case(
            "c",
            {},
            [
                ours(machine.work(0.01), read=lambda _: np.array([2.0, 1.0])),
                theirs(machine.work(0.01), read=lambda _: np.array([2.0, value])),
            ],
            tolerance=0.1,
            budget=0.1,
        )

    close = runner.measure(case(1.1), machine.meter())
    assert entry(close, "theirs")["deviation"] == pytest.approx(0.05)
    with pytest.raises(RuntimeError, match=r"theirs: expected the same .* deviation of 0\.5"):
        runner.measure(case(2.0), machine.meter())
    with pytest.raises(RuntimeError, match="deviation of nan"):
        runner.measure(case(np.nan), machine.meter())


@pytest.mark.parametrize("name", NAMES)
def test_benches_run_without_peers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "load", lambda name, device: "not installed")
    monkeypatch.delenv("SADDLEPOINT_DATA", raising=False)
    bench = importlib.import_module(f"benchmarks.bench_{name}")
    for make in bench.cases(Options(quick=True)):
        case = make()
        report = runner.measure(replace(case, budget=0.0))
        assert report["absent"]["torch"] == "not installed"
        assert {c["library"] for c in report["contestants"]} == {"saddlepoint"}
        assert report["bars"] == []


def shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round each, without rests: what is compared, not how fast it is."""
    monkeypatch.setattr(runner, "ROUNDS", (1, 1))
    monkeypatch.setattr(runner, "REST", 0.0)
    monkeypatch.setattr(runner, "BLOCK", 0.0)


def test_optimizers_do_what_their_peers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case: `measure` raises where they differ."""
    shortest(monkeypatch)
    reports = []
    for make in bench_optim.cases(Options(quick=True)):
        case = make()
        report = runner.measure(case, bench_optim.METER)
        assert not report["absent"]
        libraries = [c["library"] for c in report["contestants"]]
        assert {"saddlepoint", "torch"} == set(libraries)
        # One of ours is the reference; all others were held against it.
        assert all("deviation" in c for c in report["contestants"][1:])
        assert all(floor["share"] for floor in report["floors"])
        assert "share of the floor" in "\n".join(table.lines(report))
        reports.append(report)
    names = [report["case"] for report in reports]
    assert len(set(names)) == len(names) == 23
    low = next(r for r in reports if r["case"].startswith("SGD with momentum in bfloat16"))
    assert "torch fused" not in {c["name"] for c in low["contestants"]}


@pytest.mark.parametrize("wrong", ["lr", "clip", "ema", "zero"])
def test_optimizers_that_differ_are_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours with another rate, norm, average, or gradients left as they were."""
    shortest(monkeypatch)
    options = Options(quick=True)
    if wrong == "lr":
        work = bench_optim._Work(torch, [(1000,)], options)
        rule = replace(bench_optim.ADAMW, arguments={"lr": 0.01 * (1 + 1e-3)})
        contestants = [work.ours(rule), work.theirs(bench_optim.ADAMW, "fused")]
        case = Case("c", {}, contestants, tolerance=bench_optim.TOLERANCE)
    else:
        adamw = torch_optim.AdamW

        def other(*arguments: Any, **more: Any) -> Any:
            change: dict[str, dict[str, Any]] = {
                "clip": {"max_norm": 1.05 * bench_optim.MAX_NORM},
                "ema": {"ema_decay": 0.99 * bench_optim.EMA},
                "zero": {"zero_grads": False},
            }
            return adamw(*arguments, **{**more, **change[wrong]})

        monkeypatch.setattr(torch_optim, "AdamW", other)
        case = bench_optim._pipeline(torch, [(1000,), (7, 11)], "two tensors", 1.0, options)
    with pytest.raises(RuntimeError, match=r"torch .*: expected the same result within"):
        runner.measure(case, bench_optim.METER)


def test_floors_of_optimizers() -> None:
    """Four bytes for each array, twice where it is read and written."""
    rules = [bench_optim.SGD, bench_optim.ADAGRAD, bench_optim.ADAMW, *bench_optim.NEVER_FUSED]
    bytes_ = [rule.floor(10, roofs=()).amount / 10 for rule in rules]
    assert bytes_ == [20, 20, 28, 20, 28, 28, 28, 28, 20, 28]


def test_resnet50_has_the_tensors_that_it_has() -> None:
    """161 with 25,557,032 numbers, as He et al.'s network has in torchvision."""
    shapes = bench_optim.resnet50()
    assert len(shapes) == 161
    assert sum(math.prod(shape) for shape in shapes) == 25_557_032
    assert shapes[:3] == [(64, 3, 7, 7), (64,), (64,)]
    assert shapes[-2:] == [(1000, 2048), (1000,)]


def test_batch_norms_do_what_their_peers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case and way, compilation aside: `measure` raises where they differ."""
    shortest(monkeypatch)
    reports = []
    for make in bench_batch_norm.cases(Options(quick=True)):
        case = make()
        report = runner.measure(case, bench_batch_norm.METER)
        images = len(report["parameters"]["shape"]) > 2
        contiguous = report["parameters"]["memory"] == "contiguous"
        wanted = {"saddlepoint", "torch", "tuned malloc"}
        wanted |= {"channels-last"} if images and contiguous else set()
        assert {c["library"] for c in report["contestants"]} == wanted
        # Ours is the reference; all others were held against it.
        assert all("deviation" in c for c in report["contestants"][1:])
        assert all("saddlepoint" in floor["share"] for floor in report["floors"])
        reports.append(report)
    assert len({report["case"] for report in reports}) == len(reports) == 16
    bars = [b["at_least"] for report in reports for b in report["bars"] if b["peer"] == "torch"]
    assert bars == [5.0, 6.0, 6.0, 1.5, 2.0, 5.0, 1.0, 1.5, 1.5, 1.5, 1.8, 1.8, 4.0]


@pytest.mark.parametrize("direction", bench_batch_norm.MOVED)
@pytest.mark.parametrize("last", [False, True])
def test_batch_norms_that_differ_are_found(
    direction: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours with another epsilon, beside each of PyTorch's ways."""
    shortest(monkeypatch)
    right = norm.batch_norm

    def wrong(*arguments: Any, **more: Any) -> Any:
        return right(*arguments[:7], 1e-3, *arguments[8:], **more)

    monkeypatch.setattr(norm, "batch_norm", wrong)
    with bench_batch_norm.PROCESS:
        options = Options(quick=True)
        case = bench_batch_norm._case(torch, small(direction, last=last), None, options)
        ours, *others = case.contestants
        for theirs in others:
            pair = replace(case, contestants=[ours, theirs])
            with pytest.raises(RuntimeError, match=f"{theirs.name}: expected the same result"):
                runner.measure(pair, bench_batch_norm.METER)


def small(direction: str, **more: Any) -> bench_batch_norm.Work:
    return bench_batch_norm.Work(direction, (4, 3, 5, 5), **more)


def test_floors_of_batch_norm() -> None:
    """Bytes an element, with what is read again in cache and from memory."""
    bytes_ = {
        small("forward", activation="relu"): (8, 12),
        small("forward", activation="relu", residual=True): (12, 16),
        small("backward"): (12, 20),
        small("double backward"): (20, 32),
        small("forward", dtype="bfloat16"): (4, 6),
    }
    for work, wanted in bytes_.items():
        assert [floor.amount / work.n for floor in work.floors()] == list(wanted)


def test_a_tuned_malloc_keeps_its_pages() -> None:
    """51 MB, which here are mapped anew at each call, in pages of 4 KiB or 2 MiB."""
    work = bench_batch_norm.Work("forward", (16, 256, 56, 56))
    call, _ = bench_batch_norm._leanest_way(work, "cpu")
    with tuned.Tuned(runner.Clock()) as process:
        there = process.contestant("tuned", bench_batch_norm._leanest_way, work, "cpu")
        faults = []
        for act in (call, there.call):
            act()
            counts = []
            for _ in range(3):  # the least: a system may take idle pages back by itself
                before = process.page_faults()
                act()
                counts.append(process.page_faults() - before)
            faults.append(min(counts))
    assert faults[0] >= 4 * work.n // 2**21
    assert faults[1] < faults[0] / 10


def test_seconds_of_another_process_stand_for_ours() -> None:
    clock = runner.Clock()
    began = clock()

    def work() -> float:
        time.sleep(0.2)
        return 30.0

    clock.instead(work)
    assert 30.0 <= clock() - began < 30.1


def test_a_process_that_ends_is_told() -> None:
    with (
        tuned.Tuned(runner.Clock()) as process,
        pytest.raises(RuntimeError, match="expected an answer to 'make', got the end"),
    ):
        process.contestant("tuned", os._exit, 1)


def test_what_is_left_out_does_not_count() -> None:
    clock, waited = runner.Clock(), []
    began = clock()
    clock.leave_out(lambda: time.sleep(0.2), lambda: waited.append(time.perf_counter()))
    assert clock() - began < 0.1
    assert waited[1] - waited[0] >= 0.2  # before and after: queued work is on nobody's bill


def test_quick_run_writes_a_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "hvp", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "hvp-cpu.json").read_text())
    assert not report["ran_on_gpu"]
    assert report["quick"]
    assert report["threads"]["saddlepoint"] >= 1
    assert {"saddlepoint", "numpy", "torch", "jax"} <= report["versions"].keys()
    assert {"commit", "dirty"} == report["git"].keys()
    for case in report["cases"]:
        libraries = {c["library"] for c in case["contestants"]}
        assert libraries | case["absent"].keys() == {"saddlepoint", "torch", "jax"}
        for contestant in case["contestants"]:
            found = contestant["seconds"]
            assert 0 < found["min"] <= found["median"] <= found["max"]
    assert table.table([report]).count("\n| product") == len(report["cases"])


def test_unknown_bench_or_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "NAME: expected batch_norm, busy, epoch" in capsys.readouterr().err


def report_of(device: str = "cpu") -> dict[str, Any]:
    """What a run writes, as the table reads it."""
    machine = Machine()
    case = Case(
        "work",
        {},
        [ours(machine.work(0.01)), theirs(machine.work(0.02))],
        [Roof("roof", machine.work(0.01), 1e6)],
        [Floor(5e5, "B", "half", ("roof",))],
        absent={"jax": "not installed"},
        budget=0.5,
    )
    cuda = device == "cuda"
    return {
        "bench": "one",
        "device": device,
        "ran_on_gpu": cuda,
        "date": "2000-01-01",
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "machine": {
            "cpu": "Abacus",
            "cores": 2,
            "caches": {"L1d": "32KiB"},
            "memory_bytes": 2**34,
            "os": "Linux",
            "gpu": ["Loom"] if cuda else None,
        },
        "versions": {"numpy": "2.0", "torch": "2.13.0", "jax": "not installed"},
        "cases": [runner.measure(case, machine.meter())],
    }


def test_table_shows_ratio_floor_machine_and_what_never_ran() -> None:
    text = table.table([report_of()])
    assert "| work | 10 ms | 20 ms (**2.00×**; theirs) | not installed | 50% |" in text
    assert "Abacus, 2 cores; L1d 32KiB; 16 GiB; Linux; NumPy 2.0, PyTorch 2.13.0;" in text
    assert "commit 0123456789; 2000-01-01." in text
    assert text.endswith("CUDA: never run on a GPU.")
    both = table.table([report_of(), report_of("cuda")])
    assert "never run" not in both
    assert both.index("Abacus") < both.index("Loom")


def test_table_has_a_column_for_what_was_compiled() -> None:
    report = report_of()
    machine = Machine()
    compiled = Contestant(
        "torch.compile", "torch.compile", machine.work(0.04), note="compiled in 1.5 s"
    )
    contestants = [ours(machine.work(0.01)), theirs(machine.work(0.02)), compiled]
    case = Case("step", {}, contestants, bars=[Bar("torch.compile", 5.0)], budget=0.5)
    report["cases"].append(runner.measure(case, machine.meter()))
    text = table.table([report])
    assert "| | saddlepoint | PyTorch | torch.compile | JAX | floor |\n" in text
    assert "| 20 ms (**2.00×**; theirs) | 40 ms (**4.00×**; compiled in 1.5 s) | – | – |" in text
    assert "| work | 10 ms | 20 ms (**2.00×**; theirs) | – | not installed | 50% |" in text
    assert "bar 5.0 x torch.compile: 4.00, MISSED" in "\n".join(table.lines(report["cases"][1]))


def test_table_of_ratios_has_a_column_for_each_way() -> None:
    machine = Machine()

    def way(library: str, seconds: float, note: str = "") -> Contestant:
        return Contestant(library, library, machine.work(seconds), note=note)

    contestants = [
        ours(machine.work(0.01)),
        theirs(machine.work(0.04)),
        way("tuned malloc", 0.03),
        way("channels-last", 0.005),
        way("torch.compile", 0.02, "compiled in 1.5 s"),
    ]
    bars = [Bar("torch", 3.0), Bar("tuned malloc", 5.0), Bar("channels-last", 1.0)]
    report = report_of()
    case = Case("forward", {}, contestants, bars=bars, budget=0.5)
    other = Case("backward", {}, contestants[:2], absent={"torch.compile": "none"}, budget=0.5)
    report["cases"] = [runner.measure(c, machine.meter()) for c in (case, other)]
    text = table.table([report_of(), report])
    heads = "× PyTorch | × tuned malloc | × channels-last | × torch.compile | floor |\n"
    assert f"\n\n| | saddlepoint | {heads}" in text
    cells = "**4.00×** (≥ 3) | **3.00×** (not ≥ 5) | **0.50×** | **2.00×** (compiled in 1.5 s) | –"
    assert f"\n| forward | 10 ms | {cells} |" in text
    assert "\n| backward | 10 ms | **4.00×** | – | – | none | – |" in text
    assert "| work | 10 ms | 20 ms (**2.00×**; theirs) | not installed | 50% |" in text


def test_shares_that_were_wanted_are_told() -> None:
    """Half of the roof, of 0.4 and 0.6 that were wanted."""
    case = report_of()["cases"][0]
    for least, met in ((0.4, "met"), (0.6, "MISSED")):
        case["parameters"] = {"least_share": {"ours": least}}
        text = table.lines(case)
        assert text[-1] == f"  bar {least:.0%} of the floor for ours: 50%, {met}"
        assert "  share of the floor, half: ours 50% (0.05 GB/s)" in "\n".join(text)


def test_table_stands_between_the_markers() -> None:
    readme = f"# Title\n{table.BEGIN}\nold\n{table.END}\nrest\n"
    first = table.written(readme, [report_of()])
    assert first.startswith("# Title\n")
    assert first.endswith("\nrest\n")
    assert "old" not in first
    assert table.written(first, [report_of()]) == first
    with pytest.raises(ValueError, match=r"README\.md: expected"):
        table.written("# Title\n", [report_of()])


def test_readme_shows_the_committed_results() -> None:
    assert table.main(["--check"]) == 0
    assert not any(report["quick"] for report in table.saved())
