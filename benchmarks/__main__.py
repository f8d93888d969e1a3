"""``python -m benchmarks``: runs the benches and writes one JSON for each and the device."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NAMES = sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benches, print and write their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the JSONs (benchmarks/results)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes; written only where --output says"
    )
    parser.add_argument("--seconds", type=float, help="of a case, shared out among its contestants")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes a while"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose names match")
    parser.add_argument("--data", type=Path, help="folder with MNIST's files (SADDLEPOINT_DATA)")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(NAMES))
    if unknown:
        parser.error(f"NAME: expected {', '.join(NAMES)}, got {', '.join(unknown)}")
    # NumPy's OpenBLAS threads would spin beside everybody's; we time no product of NumPy's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    output = chosen.output or (None if chosen.quick else RESULTS)

    from saddlepoint import DeviceError
    from saddlepoint._native import module

    try:
        module(chosen.device)
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1

    from .machine import facts
    from .runner import Options

    options = Options(
        chosen.device, chosen.quick, chosen.data, chosen.seconds, not chosen.no_compile
    )
    about = facts(chosen.device)
    failed = False
    for name in chosen.names or NAMES:
        for report in run(name, options, chosen.only):
            failed = failed or bool(report["failed"])
            if output is not None:
                _write(output / f"{name}-{chosen.device}.json", {**report, **about})
    return int(failed)


def _write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all: what comes next may be stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(_rounded(report), indent=1, ensure_ascii=False) + "\n")
    new.replace(path)


def run(name: str, options: Any, only: str = "") -> Iterator[dict[str, Any]]:
    """What there is after each case of one bench; cases are printed as they end.

    One that fails leaves the others their turn.
    """
    from . import peers
    from .runner import Meter, measure
    from .table import lines

    bench = importlib.import_module(f".bench_{name}", __package__)
    meter = replace(
        getattr(bench, "METER", Meter()),  # a bench may leave out what it prepares
        synchronize=peers.synchronizer(options.device),
    )
    cases: list[dict[str, Any]] = []
    failed: list[str] = []
    for make in bench.cases(options):
        try:
            case = make()
            if re.search(only, case.name):
                cases.append(measure(case, meter))
                print("\n".join(lines(cases[-1])), flush=True)
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:
            traceback.print_exc()
            failed.append(f"{type(error).__name__}: {error}")
        case = None  # its memory is for the next one
        gc.collect()
        yield {
            "bench": name,
            "title": bench.TITLE,
            "device": options.device,
            "ran_on_gpu": options.device == "cuda",
            "quick": options.quick,
            "cases": cases,
            "failed": failed,
        }


def _rounded(x: Any) -> Any:
    """Floats to five digits: more is noise."""
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {k: _rounded(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_rounded(v) for v in x]
    return x


if __name__ == "__main__":
    sys.exit(main())
