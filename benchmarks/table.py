"""The README's table, made from the JSONs: ``python -m benchmarks.table [--check]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["lines", "table"]

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results", HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
OURS = "saddlepoint"
NEVER = "never run on a GPU"
ON_HOSTS = {"busy"}  # benches of the CPU alone
LIBRARIES = {"torch": "PyTorch", "torch.compile": "torch.compile", "jax": "JAX"}
# Benches with one of these have a table of ratios alone, with a column for each way of a peer.
WAYS = ("tuned malloc", "channels-last", "cuDNN", "native")


def seconds(t: float) -> str:
    """Three digits and a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if t >= scale:
            return f"{t / scale:.3g} {unit}"
    return f"{t / 1e-6:.3g} µs"


def lines(case: dict[str, Any]) -> list[str]:
    """A case as plain text, for the terminal."""
    text = [case["case"]]
    for entry in [*case["contestants"], *case["roofs"]]:
        low, middle, high = (seconds(entry["seconds"][k]) for k in ("min", "median", "max"))
        rate = f"  {entry['rate'] / 1e9:.0f} G/s" if "rate" in entry else ""
        text.append(
            f"  {entry['name']:44} {middle:>8}  ({low} to {high}, "
            f"{entry['repetitions']} rounds, {entry['dropped']} dropped){rate}"
        )
    for name, peers in case["ratios"].items():
        for peer in peers.values():
            text.append(f"  {name} is {peer['ratio']:.2f} x {peer['best']}")
    for library, reason in case["absent"].items():
        text.append(f"  {LIBRARIES.get(library, library)}: {reason}")
    for floor in case["floors"]:
        shares = ", ".join(
            f"{name} {share:.0%} ({share * floor['roof']['rate'] / 1e9:.3g} G{floor['unit']}/s)"
            for name, share in floor["share"].items()
        )
        text.append(f"  share of the floor, {floor['formula']}: {shares or 'no roof'}")
    for bar in case["bars"]:
        met = "met" if bar["met"] else "MISSED"
        text.append(f"  bar {bar['at_least']} x {bar['peer']}: {bar['ratio']:.2f}, {met}")
    for name, least in case["parameters"].get("least_share", {}).items():
        share = min(f["share"][name] for f in case["floors"] if name in f["share"])
        met = "met" if share >= least else "MISSED"
        text.append(f"  bar {least:.0%} of the floor for {name}: {share:.0%}, {met}")
    return text


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was measured on which machine, a row a case; the GPU's beside it."""
    parts = []
    for device in ("cpu", "cuda"):
        of_device = [r for r in reports if r["device"] == device]
        if device == "cuda":
            of_device = [r for r in of_device if r["ran_on_gpu"]]
            missing = sorted(
                {r["bench"] for r in reports} - {r["bench"] for r in of_device} - ON_HOSTS
            )
            if missing or not of_device:
                what = f" ({', '.join(missing)})" if of_device else ""
                parts.append(f"CUDA{what}: {NEVER}.")
        if of_device:
            parts.insert(2 * (device == "cuda"), _tables(of_device))
            parts.insert(1 + 2 * (device == "cuda"), "\n".join(_about(of_device)))
    return "\n\n".join(parts)


def _tables(reports: Sequence[dict[str, Any]]) -> str:
    by_way = [r for r in reports if any(_of(c, way) for c in r["cases"] for way in WAYS)]
    others = [r for r in reports if r not in by_way]
    return "\n\n".join(([_rows(others)] if others else []) + [_ratios(r) for r in by_way])


def _ratios(report: dict[str, Any]) -> str:
    """A column for each way of the peers, with the bar where it is not 1."""
    cases = report["cases"]
    columns = [x for x in ("torch", *WAYS, "torch.compile") if any(_of(c, x) for c in cases)]
    heads = [OURS, *(f"× {LIBRARIES.get(x, x)}" for x in columns), "floor"]
    rows = [f"| | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for case in cases:
        best = min(_of(case, OURS), key=_median)
        ratios = [_ratio(case, best["name"], library) for library in columns]
        cells = [case["case"], seconds(_median(best)), *ratios, _share(case, best["name"])]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _ratio(case: dict[str, Any], ours: str, library: str) -> str:
    if library not in case["ratios"][ours]:
        return str(case["absent"].get(library, "–"))
    ratio = case["ratios"][ours][library]
    about = [
        f"{'' if bar['met'] else 'not '}≥ {bar['at_least']:g}"
        for bar in case["bars"]
        if bar["peer"] == library and bar["at_least"] != 1.0
    ]
    if library == "torch.compile":
        about += [c["note"] for c in _of(case, library) if "note" in c]
    return f"**{ratio['ratio']:.2f}×**" + (f" ({', '.join(about)})" if about else "")


def _rows(reports: Sequence[dict[str, Any]]) -> str:
    every = [case for report in reports for case in report["cases"]]
    libraries = [x for x in LIBRARIES if any(_of(case, x) or x in case["absent"] for case in every)]
    heads = [OURS, *(LIBRARIES[x] for x in libraries), "floor"]
    rows = [f"| | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for report in reports:
        for case in report["cases"]:
            best = min(_of(case, OURS), key=_median)
            peers = [_peer(case, best["name"], library) for library in libraries]
            cells = [case["case"], seconds(_median(best)), *peers, _share(case, best["name"])]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _of(case: dict[str, Any], library: str) -> list[dict[str, Any]]:
    return [c for c in case["contestants"] if c["library"] == library]


def _median(contestant: dict[str, Any]) -> float:
    return float(contestant["seconds"]["median"])


def _peer(case: dict[str, Any], ours: str, library: str) -> str:
    """A peer's best time, how many times ours that is, and which way it was."""
    if library in case["absent"]:
        return str(case["absent"][library])
    if library not in case["ratios"][ours]:
        return "–"
    ratio = case["ratios"][ours][library]
    best = next(c for c in _of(case, library) if c["name"] == ratio["best"])
    how = best["name"].removeprefix("torch ").removeprefix("JAX ")
    if best["name"] == library:  # its one way says nothing; its note has the compile seconds
        how = best.get("note", how)
    return f"{seconds(_median(best))} (**{ratio['ratio']:.2f}×**; {how})"


def _share(case: dict[str, Any], ours: str) -> str:
    """The floor's time by ours; the strictest floor where there are several."""
    shares = [f["share"][ours] for f in case["floors"] if ours in f["share"]]
    return f"{min(shares):.0%}" if shares else "–"


def _about(reports: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each machine and commit, with the benches it speaks of."""
    about: dict[str, list[str]] = {}
    for report in reports:
        about.setdefault(_sentence(report), []).append(report["bench"])
    several = len(about) > 1
    return [f"{', '.join(b)}: {text}" if several else text for text, b in about.items()]


def _sentence(report: dict[str, Any]) -> str:
    machine, git = report["machine"], report["git"]
    commit = (git["commit"] or "unknown")[:10] + (", with changes" if git["dirty"] else "")
    what = ", ".join(machine["gpu"] or [f"{machine['cpu']}, {machine['cores']} cores"])
    caches = ", ".join(f"{k} {v}" for k, v in machine["caches"].items())
    versions = ", ".join(
        f"{name} {report['versions'][key]}"
        for key, name in (("numpy", "NumPy"), ("torch", "PyTorch"), ("jax", "JAX"))
        if report["versions"][key] != "not installed"
    )
    return (
        f"{what}; {caches}; {machine['memory_bytes'] / 2**30:.0f} GiB; {machine['os']}; "
        f"{versions}; commit {commit}; {report['date']}."
    )


def saved(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The JSONs of a folder, in a fixed order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]


def written(readme: str, reports: Sequence[dict[str, Any]]) -> str:
    """The README with the table between its markers.

    Raises
    ------
    ValueError
        If there are results and no markers.
    """
    if not reports:
        return readme
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md: expected {BEGIN} and {END}, got neither")
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(reports)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or with ``--check`` only say whether it is up to date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README is out of date")
    check = parser.parse_args(arguments).check
    now = README.read_text()
    wanted = written(now, saved())
    if check:
        if now != wanted:
            print("README.md: out of date: python -m benchmarks.table", file=sys.stderr)
        return int(now != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
