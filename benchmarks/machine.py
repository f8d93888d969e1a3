"""What a number belongs to: machine, versions, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import saddlepoint as sp

from . import peers

__all__ = ["facts"]

ROOT = Path(__file__).resolve().parents[1]


def facts(device: str) -> dict[str, Any]:
    """Machine, versions, threads, commit and date, as plain values. No host names."""
    info = sp.info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "git": _git(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "caches": _caches(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "os": _os(),
            "gpu": [d["name"] for d in info["CUDA devices"]] if device == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            "saddlepoint": sp.__version__,
            **{name: _version(name) for name in ("numpy", "torch", "jax", "jaxlib")},
        },
        "blas": info["BLAS"],
        "instruction_set": info["instruction set"],
        "threads": {"saddlepoint": sp.num_threads(), "torch": _torch_threads(device)},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MALLOC_"))},
    }


def _git() -> dict[str, Any]:
    """Commit, and whether files other than results differ from it; None where there is no git.

    A copy of the sources is told its commit by SADDLEPOINT_COMMIT.
    """
    if "SADDLEPOINT_COMMIT" in os.environ:
        return {"commit": os.environ["SADDLEPOINT_COMMIT"], "dirty": False}
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _caches() -> dict[str, str]:
    """Size by level, as each core sees it."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = _read(index / "type").strip()[:1].lower()
        level = "L" + _read(index / "level").strip()
        name = level + kind if kind in "di" else level
        caches[name] = _read(index / "size").strip() + "iB"
    return caches


def _os() -> str:
    release = dict(
        line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line
    )
    name = release.get("PRETTY_NAME", platform.system()).strip('"')
    kernel = ".".join(platform.release().split(".")[:2])
    pages = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    huge = pages[pages.find("[") + 1 : pages.find("]")] or "unknown"
    return f"{name}, {platform.system()} {kernel}, huge pages: {huge}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _torch_threads(device: str) -> int | None:
    torch = peers.load("torch", device)
    return None if isinstance(torch, str) else int(torch.get_num_threads())


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
