"""AdamW on one large tensor: one pass over memory, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saddlepoint import Vector, optim, vector

from . import peers
from .runner import Case, Contestant, Floor, Options, Roof

TITLE = "AdamW"
BYTES = 28  # a parameter: p, m and v read and written, the gradient read
FORMULA = "28 B a parameter: p, m, v read and written, the gradient read"


def _read(p: Any, _: Any) -> NDArray[Any]:
    """The parameter, whatever the step returned."""
    return peers.host(p)


def cases(options: Options) -> Iterator[Case]:
    """One tensor, on our memory and on everybody's own."""
    n = 200_000 if options.quick else 50_000_000
    device = options.device
    rng = np.random.default_rng(0)
    start = rng.standard_normal(n, np.float32)
    slope = 0.01 * rng.standard_normal(n, np.float32)

    def ours(name: str, p: Any, gradient: Any) -> Contestant:
        optimizer = optim.AdamW(p, lr=1e-3)
        return Contestant(name, "saddlepoint", partial(optimizer.step, gradient), partial(_read, p))

    def scale(name: str, x: Any) -> Roof:
        return Roof(name, lambda: vector.scale(1.0, x), 8.0 * 4 * n)

    # As large as parameter, gradient and both states together, so that it is in the same caches.
    filled = np.ones(4 * n, np.float32)
    on_vector, on_numpy, on_tensor = (f"saddlepoint on {x}" for x in ("Vector", "NumPy", "torch"))
    contestants = [
        ours(on_vector, Vector.from_numpy(start, device), Vector.from_numpy(slope, device))
    ]
    roofs = [scale("in place, Vector", Vector.from_numpy(filled, device))]
    floors = [Floor(BYTES * n, "B", FORMULA, ("in place, Vector",), (on_vector,))]
    if device == "cpu":
        contestants.append(ours(on_numpy, start.copy(), slope))
        roofs.append(scale("in place, NumPy", filled))
        floors.append(Floor(BYTES * n, "B", FORMULA, ("in place, NumPy",), (on_numpy,)))
    absent = {}
    torch = peers.load("torch", device)
    if isinstance(torch, str):
        absent["torch"] = torch
    else:

        def tensor(x: NDArray[Any]) -> Any:
            return torch.tensor(x, device=device)

        contestants.append(ours(on_tensor, tensor(start), tensor(slope)))
        for how in ("fused", "foreach", "default"):
            p = torch.nn.Parameter(tensor(start))
            p.grad = tensor(slope)
            flags = {"foreach": False} if how == "default" else {how: True}
            optimizer = torch.optim.AdamW([p], lr=1e-3, **flags)
            contestants.append(
                Contestant(f"torch {how}", "torch", optimizer.step, partial(_read, p))
            )
        roofs.append(scale("in place, torch", torch.ones(4 * n, device=device)))
        torch_pages = (on_tensor, "torch fused", "torch foreach", "torch default")
        floors.append(Floor(BYTES * n, "B", FORMULA, ("in place, torch",), torch_pages))
    yield Case(
        f"AdamW, one tensor of {n:,} floats",
        {"n": n, "dtype": "float32", "lr": 1e-3, "weight_decay": 1e-2},
        contestants,
        roofs,
        floors,
        absent=absent,
        tolerance=1e-6,  # the fused kernels agree to the bit; the others round elsewhere
        budget=options.budget(60.0),
    )
