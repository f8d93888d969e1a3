"""``python -m benchmarks``: runs the benches and writes one JSON for each and the device."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
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

    options = Options(chosen.device, chosen.quick, chosen.data)
    about = facts(chosen.device)
    for name in chosen.names or NAMES:
        report = {**run(name, options), **about}
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{name}-{chosen.device}.json"
            path.write_text(json.dumps(_rounded(report), indent=1, ensure_ascii=False) + "\n")
    return 0


def run(name: str, options: Any) -> dict[str, Any]:
    """All cases of one bench, printed as they end."""
    from . import peers
    from .runner import Meter, measure
    from .table import lines

    bench = importlib.import_module(f".bench_{name}", __package__)
    meter = replace(
        getattr(bench, "METER", Meter()),  # a bench may leave out what it prepares
        synchronize=peers.synchronizer(options.device),
    )
    cases = []
    for case in bench.cases(options):
        cases.append(measure(case, meter))
        del case  # its memory is for the next one
        gc.collect()
        print("\n".join(lines(cases[-1])), flush=True)
    return {
        "bench": name,
        "title": bench.TITLE,
        "device": options.device,
        "ran_on_gpu": options.device == "cuda",
        "quick": options.quick,
        "cases": cases,
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
