"""What is made from the optimizers' declarations: the stubs of both faces, and the README's table.

    python docs/tables.py

writes them anew; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from saddlepoint.optim.rules import RULES, Rule

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "saddlepoint"
STUBS = {
    PACKAGE / "optim" / "faces.pyi": (
        "from typing import Any\n\nfrom . import rules\nfrom .optimizers import Optimizer\n\n"
        "def faces_of(storage: type, module: str) -> dict[str, Any]: ...\n"
    ),
    PACKAGE / "torch" / "optim" / "faces.pyi": (
        "from ...optim import rules\nfrom .optimizer import Optimizer\n"
    ),
}
BEGIN, END = "<!-- optimizers:begin -->\n", "<!-- optimizers:end -->"


def stub(imports: str) -> str:
    """The text of a faces.pyi."""
    names = sorted(RULES, key=lambda name: (not name.isupper(), name))  # as ruff sorts
    public = "".join(f'    "{name}",\n' for name in names)
    classes = "".join(f"class {name}(rules.{name}, Optimizer): ...\n" for name in names)
    made = "# Made by docs/tables.py.\n"
    return f"{made}{imports}\n__all__ = [\n{public}]\n\n{classes}"


def arrays(rule: type[Rule], arguments: Any) -> int:
    """How many arrays a rule keeps beside a matrix."""

    class Probe(rule):  # type: ignore[misc, valid-type]
        def _start(self, params: Any, defaults: Any, common: Any) -> None:
            self.count = len(self._states({**defaults, **arguments}, params))

    return int(Probe(np.zeros((2, 2)), **arguments).count)


def row(name: str, rule: type[Rule]) -> str:
    """A line of the README's table: bytes are what a float32 parameter reads and writes."""
    counts = [arrays(rule, arguments) for arguments in rule.variants.values()]
    told = "; ".join([name, *(label for label in rule.variants if label)])
    cells = [
        f"{told} (matrices)" if name == "Muon" else told,
        rule.arrays or "; ".join(map(str, counts)),
        rule.traffic or "; ".join(str(12 + 8 * n) for n in counts),
        rule.fused_in_torch,
        rule.source,
    ]
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """The README's table of optimizers."""
    head = "| | state arrays | bytes a float32 parameter | fused in PyTorch (CPU) | formula |\n"
    rows = "".join(row(name, rule) for name, rule in RULES.items())
    return f"{BEGIN}{head}| --- | --- | --- | --- | --- |\n{rows}{END}"


def made() -> dict[Path, str]:
    """What each file should hold."""
    files = {path: stub(imports) for path, imports in STUBS.items()}
    readme = ROOT / "README.md"
    files[readme] = re.sub(f"{BEGIN}.*{END}", lambda _: table(), readme.read_text(), flags=re.S)
    return files


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)
