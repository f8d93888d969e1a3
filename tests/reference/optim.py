"""Optimizers, a step a line: each takes p and its gradients in turn, and gives p after each step.

A gradient may depend on where p is, so ``gradients`` are functions of p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from . import Array

Gradients = Iterable[Callable[[Array], Array]]


def sgd(
    p: Array,
    gradients: Gradients,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """p ← p − lr b, b ← momentum b + (1 − dampening) g, b = g at first (torch.optim.SGD)."""
    path, b = [], None
    for gradient in gradients:
        g = (-1.0 if maximize else 1.0) * gradient(p) + weight_decay * p
        b = g if b is None else momentum * b + (1.0 - dampening) * g
        p = p - lr * (g + momentum * b if nesterov else b if momentum else g)
        path.append(p)
    return path


def heavy_ball(p: Array, gradients: Gradients, rates: Iterable[float], beta: float) -> list[Array]:
    """Δ ← βΔ − η∇f(p), p ← p + Δ: the rate inside (Sutskever et al. 2013, the lectures)."""
    path, step = [], np.zeros_like(p)
    for gradient, rate in zip(gradients, rates, strict=True):
        step = beta * step - rate * gradient(p)
        p = p + step
        path.append(p)
    return path


def polyak(p: Array, gradients: Gradients, rates: Iterable[float], beta: float) -> list[Array]:
    """v ← βv − ∇f(p), p ← p + ηv: the rate outside."""
    path, v = [], np.zeros_like(p)
    for gradient, rate in zip(gradients, rates, strict=True):
        v = beta * v - gradient(p)
        p = p + rate * v
        path.append(p)
    return path


def nesterov(p: Array, gradients: Gradients, rates: Iterable[float], beta: float) -> list[Array]:
    """Δ ← βΔ − η∇f(p + βΔ), p ← p + Δ; gives p + βΔ, where the next gradient is taken."""
    path, step = [], np.zeros_like(p)
    for gradient, rate in zip(gradients, rates, strict=True):
        step = beta * step - rate * gradient(p + beta * step)
        p = p + step
        path.append(p + beta * step)
    return path


def adam(
    p: Array,
    gradients: Gradients,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """Kingma & Ba 2015, Algorithm 1; ``decoupled`` decay is Loshchilov & Hutter 2019, Algorithm 2.

    ``amsgrad`` divides by the largest v so far (Reddi, Kale & Kumar 2018), corrected as v is.
    """
    path, m, v, top = [], np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = (-1.0 if maximize else 1.0) * gradient(p)
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        top = np.maximum(top, v)
        m_hat = m / (1 - betas[0] ** t)
        v_hat = (top if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(p)
    return path
