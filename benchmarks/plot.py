"""The README's picture of the optimizers, made from the JSON: ``python -m benchmarks.plot``."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
OURS = "saddlepoint"


def main() -> None:
    """Draw how many times as fast as the best eager PyTorch each case is."""
    import matplotlib.pyplot as plt

    report = json.loads((HERE / "results" / "optim-cpu.json").read_text())
    rows = [
        (case["case"].replace("one tensor of 50,000,000", "50 M"), peers["torch"])
        for case in report["cases"]
        for name, peers in case["ratios"].items()
        if name == OURS and "torch" in peers and "bfloat16" not in case["case"]
    ]
    rows.sort(key=lambda row: row[1]["ratio"])
    figure, axes = plt.subplots(figsize=(8.5, 0.32 * len(rows) + 1.1), layout="constrained")
    places = range(len(rows))
    values = [peer["ratio"] for _, peer in rows]
    bars = axes.barh(places, values, color=["#2f6f8f" if v >= 1 else "#b0b7bc" for v in values])
    labels = [f"{peer['ratio']:.1f}×  {peer['best']}" for _, peer in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(places, [name for name, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.8, max(values) * 5)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the fastest of PyTorch's eager settings, float32, CPU")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE.parent / "docs" / "optimizers.png", dpi=150)


if __name__ == "__main__":
    main()
