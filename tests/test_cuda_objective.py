"""PyTorch modules on a GPU as objectives: as on the CPU, whichever engine multiplies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saddlepoint as sp
import saddlepoint.torch as st
from modules import EXAMPLES, build, moved

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("name", EXAMPLES)
def test_products_are_those_of_the_cpu(name: str) -> None:
    module, data, example = build(name)
    theta = st.get_theta(module)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal(theta.numel()))
    host = st.objective(module, example.loss, data, **example.options).linearize(theta)
    module, data = module.cuda(), moved(data, "cuda")
    objective = st.objective(module, example.loss, data, **example.options)
    at = objective.linearize(theta.cuda())
    if name in (
        "dropout",
        "parts and noise",
    ):  # drawn where it is used: others, but always the same
        assert sp.hessian(objective, theta.cuda()).verify().ok
        assert torch.equal(at.hvp(v.cuda()), objective.linearize(theta.cuda()).hvp(v.cuda()))
        return
    for got, wanted in (
        (at.gradient, host.gradient),
        (at.hvp(v.cuda()), host.hvp(v)),
        (at.hvp(torch.stack([v, -v], 1).cuda())[:, 1], -host.hvp(v)),
    ):
        assert got.is_cuda
        assert float((got.cpu() - wanted).norm()) <= 1e-10 * max(float(wanted.norm()), 1.0)


@pytest.mark.parametrize("engine", ["native", "autograd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spectra_stay_on_the_device(dtype: str, engine: str) -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    x, y = torch.randn(200, 6), torch.randint(0, 4, (200,))
    module, x = module.to(getattr(torch, dtype)), x.to(getattr(torch, dtype))
    exact = np.linalg.eigvalsh(
        sp.hessian(
            st.objective(module, F.cross_entropy, (x, y), dtype="float64"),
            st.get_theta(module).double(),
        ).dense()
    )
    module = module.cuda()
    objective = st.objective(module, F.cross_entropy, (x.cuda(), y.cuda()), engine=engine)
    theta = st.get_theta(module)
    H = sp.hessian(objective, theta)
    assert H.verify().ok
    pairs = sp.eigsh(H, 4)
    tolerance = 1e-5 if dtype == "float32" else 1e-10
    assert np.abs(pairs.values - exact[[0, 1, -2, -1]]).max() <= tolerance * np.abs(exact).max()
    assert all(v.is_cuda for v in pairs.vectors)
    trace = sp.trace(H, 40)
    assert abs(trace.value - exact.sum()) <= 6 * trace.error
    density = sp.spectral_density(H, 20, 6, tolerance=1e-3, confidence=0.999)
    share = float(np.mean(exact < -1e-3))
    assert density.negative.low <= share <= density.negative.high
    assert sp.classify(objective, theta).exact


def test_tensorfloat32_stays_out() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(576, 5)).cuda()
    x, y = torch.randn(32, 3, 8, 8).cuda(), torch.randint(0, 5, (32,)).cuda()
    theta = st.get_theta(module)
    v = torch.randn_like(theta)
    exact = st.objective(module, F.cross_entropy, (x, y), dtype="float64").linearize(theta.double())
    wanted = exact.hvp(v.double())
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        found = st.objective(module, F.cross_entropy, (x, y)).linearize(theta).hvp(v)
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.allow_tf32, precision = before
        torch.set_float32_matmul_precision(precision)
    assert float((found.double() - wanted).norm()) <= 1e-5 * float(wanted.norm())
