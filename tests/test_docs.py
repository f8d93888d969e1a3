"""What the documents say: their code runs, their lists are whole."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """The Python of the README and of all guides, with where it stands."""
    found = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))):
        text = path.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append((f"{path.relative_to(ROOT)}:{line}", match[1]))
    return found


BLOCKS = blocks()


def test_there_is_code_in_the_readme() -> None:
    assert sum(where.startswith("README.md") for where, _ in BLOCKS) >= 4


@pytest.mark.parametrize(
    ("where", "code"),
    [
        pytest.param(where, code, id=where, marks=[pytest.mark.slow] * ("analyze(" in code))
        for where, code in BLOCKS
    ],
)
def test_the_code_of_a_document_runs(
    where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    data = tmp_path / "digits.npz"  # of MNIST's columns and labels
    np.savez(data, x=rng.random((256, 784), np.float32), y=np.arange(256) % 10)
    exec(compile(code, where, "exec"), {"__name__": "document", "PATH": str(data)})


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(p.name for p in folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text()
    assert re.findall(r"\]\((\d{4}-[^)]+\.md)\)", index) == records
    for number, name in enumerate(records, start=1):
        assert name.startswith(f"{number:04d}-")
        assert (folder / name).read_text().startswith("# ")
