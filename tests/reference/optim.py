"""Optimizers, a step a line: each takes p and its gradients in turn, and gives p after each step.

A gradient may depend on where p is, so ``gradients`` are functions of p. Names, order and defaults
of the arguments are those of torch.optim, or of the authors' code where PyTorch has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from . import Array

Gradients = Iterable[Callable[[Array], Array]]


def signed(g: Array, maximize: bool) -> Array:
    """The gradient to descend along."""
    return -g if maximize else g


def decayed(g: Array, weight_decay: float, p: Array) -> Array:
    """The gradient of the loss and weight_decay |p|²/2; without decay p may be infinite."""
    return g + weight_decay * p if weight_decay else g


def toward(m: Array, g: Array, weight: float) -> Array:
    """βm + (1 − β)g with β = 1 − weight, from the nearer end, as torch.lerp.

    The form matters for infinities, and makes a weight of 1 exact.
    """
    return m + weight * (g - m) if weight < 0.5 else g - (1 - weight) * (g - m)


def sign(x: Array) -> Array:
    """−1, 0 or 1; 0 for a NaN, as torch.sign."""
    return np.asarray((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))


def norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x**2)))


def sgd(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """p ← p − lr b, b ← momentum b + (1 − dampening) g, b = g at first (torch.optim.SGD)."""
    path, b = [], None
    for gradient in gradients:
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
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


def adagrad(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> list[Array]:
    """Duchi, Hazan & Singer 2011, the diagonal form; eps stands outside the root."""
    path, s = [], np.full_like(p, initial_accumulator_value)
    for t, gradient in enumerate(gradients, start=1):
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
        s = s + g**2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s) + eps)
        path.append(p)
    return path


def rmsprop(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    clamp: bool = False,
) -> list[Array]:
    """Tieleman & Hinton 2012; ``centered`` divides by the deviation instead (Graves 2013).

    ``clamp`` is max(s − a², 0): the difference is not negative, but its rounding may be.
    """
    path, s, a, b = [], np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for gradient in gradients:
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
        s = alpha * s + (1 - alpha) * g**2
        a = alpha * a + (1 - alpha) * g
        spread = s - a**2 if centered else s
        b = momentum * b + g / (np.sqrt(np.maximum(spread, 0.0) if clamp else spread) + eps)
        p = p - lr * b
        path.append(p)
    return path


def adam(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> list[Array]:
    """Kingma & Ba 2015, Algorithm 1; decoupled decay is Loshchilov & Hutter 2019, Algorithm 2.

    ``amsgrad`` divides by the largest v so far (Reddi, Kale & Kumar 2018), corrected as v is.
    """
    path, m, v, top = [], np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        if decoupled_weight_decay:
            p = (1 - lr * weight_decay) * p
        else:
            g = decayed(g, weight_decay, p)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        top = np.maximum(top, v)
        m_hat = m / (1 - betas[0] ** t)
        v_hat = (top if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(p)
    return path


def adamw(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """Adam with decoupled decay."""
    return adam(p, gradients, lr, betas, eps, weight_decay, amsgrad, maximize, True)


def rprop(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
) -> list[Array]:
    """Riedmiller & Braun 1993 in the form iRprop− (Igel & Hüsken 2000): each element's own step.

    Where the gradient changes its sign the element stays, and is taken to have had no gradient.
    """
    path, previous, size = [], np.zeros_like(p), np.full_like(p, lr)
    for gradient in gradients:
        g = signed(gradient(p), maximize)
        agreement = sign(g * previous)
        factor = np.choose(1 + agreement.astype(int), np.array([etas[0], 1.0, etas[1]], p.dtype))
        size = np.clip(size * factor, *step_sizes)
        g = np.where(agreement < 0, 0.0, g)
        p = p - sign(g) * size
        previous = g
        path.append(p)
    return path


def adadelta(
    p: Array,
    gradients: Gradients,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """Zeiler 2012, Algorithm 1: RMS(x) = √(E[x²] + eps), its eps inside both roots."""
    path, g2, d2 = [], np.zeros_like(p), np.zeros_like(p)
    for gradient in gradients:
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
        g2 = rho * g2 + (1 - rho) * g**2
        d = np.sqrt(d2 + eps) / np.sqrt(g2 + eps) * g
        d2 = rho * d2 + (1 - rho) * d**2
        p = p - lr * d
        path.append(p)
    return path


def adamax(
    p: Array,
    gradients: Gradients,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """Kingma & Ba 2015, Algorithm 2, with PyTorch's eps inside the maximum."""
    path, m, u = [], np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
        m = betas[0] * m + (1 - betas[0]) * g
        u = np.maximum(betas[1] * u, np.abs(g) + eps)
        p = p - lr / (1 - betas[0] ** t) * m / u
        path.append(p)
    return path


def nadam(
    p: Array,
    gradients: Gradients,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """Dozat 2016, Algorithm 2, with the momentum's schedule of its section 3."""

    def mu(t: int) -> float:
        return betas[0] * (1 - 0.5 * math.pow(0.96, t * momentum_decay))

    path, m, v, product = [], np.zeros_like(p), np.zeros_like(p), 1.0
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        if decoupled_weight_decay:
            p = (1 - lr * weight_decay) * p
        else:
            g = decayed(g, weight_decay, p)
        product = product * mu(t)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        v_hat = v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(p)
    return path


def radam(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """Liu et al. 2020, Algorithm 2, with PyTorch's threshold 5 (theirs: 4) and place of eps."""
    path, m, v = [], np.zeros_like(p), np.zeros_like(p)
    rho_inf = 2 / (1 - betas[1]) - 1
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        if decoupled_weight_decay:
            p = (1 - lr * weight_decay) * p
        else:
            g = decayed(g, weight_decay, p)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = m / (1 - betas[0] ** t)
        rho = rho_inf - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
        if rho > 5:
            r2 = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            p = p - lr * m_hat * math.sqrt(r2 * (1 - betas[1] ** t)) / (np.sqrt(v) + eps)
        else:
            p = p - lr * m_hat
        path.append(p)
    return path


def asgd(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    averages: list[Array] | None = None,
) -> list[Array]:
    """Polyak & Juditsky 1992 with Bottou's schedule; ``averages`` receives ax after each step."""
    path, ax, eta, mu = [], np.zeros_like(p), lr, 1.0
    for t, gradient in enumerate(gradients, start=1):
        g = decayed(signed(gradient(p), maximize), weight_decay, p)
        p = (1 - lambd * eta) * p - eta * g
        # The first p is copied: 0 + 1 (p − 0) is a NaN where p is infinite.
        ax = ax + mu * (p - ax) if mu != 1 else p.copy()
        eta = lr / (1 + lambd * lr * t) ** alpha
        mu = 1 / max(1, t - t0)
        path.append(p)
        if averages is not None:
            averages.append(ax)
    return path


def lion(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """Chen et al. 2023, Algorithm 2, with the decay first, as in their PyTorch code."""
    path, m = [], np.zeros_like(p)
    for gradient in gradients:
        g = signed(gradient(p), maximize)
        p = (1 - lr * weight_decay) * p - lr * sign(toward(m, g, 1 - betas[0]))
        m = toward(m, g, 1 - betas[1])
        path.append(p)
    return path


def adan(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
    maximize: bool = False,
) -> list[Array]:
    """Xie et al. 2022, Algorithm 1, with the authors' code's betas (the paper's 1 − β)."""
    path, m, v, n = [], np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    previous = None
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        d = np.zeros_like(g) if previous is None else g - previous
        m = toward(m, g, 1 - betas[0])
        v = toward(v, d, 1 - betas[1])
        n = betas[2] * n + (1 - betas[2]) * (g + betas[1] * d) ** 2
        m_hat, v_hat, n_hat = (x / (1 - b**t) for x, b in zip((m, v, n), betas, strict=True))
        step = lr * (m_hat + betas[1] * v_hat) / (np.sqrt(n_hat) + eps)
        p = (1 - lr * weight_decay) * p - step if no_prox else (p - step) / (1 + lr * weight_decay)
        previous = g
        path.append(p)
    return path


def lamb(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    maximize: bool = False,
) -> list[Array]:
    """You et al. 2020, Algorithm 2, with φ the identity; p is one layer.

    The ratio of the norms is 1 unless both are above 0.
    """
    path, m, v = [], np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        m = toward(m, g, 1 - betas[0])
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        r = decayed(m_hat / (np.sqrt(v_hat) + eps), weight_decay, p)
        ratio = norm(p) / norm(r) if norm(p) > 0 and norm(r) > 0 else 1.0
        p = p - lr * ratio * r
        path.append(p)
    return path


def lars(
    p: Array,
    gradients: Gradients,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 1e-8,
    maximize: bool = False,
) -> list[Array]:
    """You, Gitman & Ginsburg 2017, Algorithm 1; p is one layer.

    The local rate is 1 unless both norms are above 0.
    """
    path, b = [], np.zeros_like(p)
    for gradient in gradients:
        g = signed(gradient(p), maximize)
        local = trust_coefficient * norm(p) / (norm(g) + weight_decay * norm(p) + eps)
        local = local if norm(p) > 0 and norm(g) > 0 else 1.0
        b = momentum * b + lr * local * (g + weight_decay * p)
        p = p - b
        path.append(p)
    return path


def adafactor(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """Shazeer & Stern 2018, Algorithms 4 (matrices) and 5 (vectors), as torch.optim.Adafactor.

    There lr bounds the relative step, and eps₁ stands in the divisions. An array of more than two
    axes is a stack of matrices.
    """
    eps1 = float(np.finfo(p.dtype).eps) if eps[0] is None else eps[0]
    path, row, col, v = [], *(np.zeros(1, p.dtype) for _ in range(3))
    for t, gradient in enumerate(gradients, start=1):
        g = signed(gradient(p), maximize)
        weight = float(t) ** beta2_decay  # 1 − β₂
        rho = min(lr, 1 / math.sqrt(t))
        size = norm(p) / math.sqrt(p.size)
        rate = rho * (size if size > eps[1] else eps[1])
        p = (1 - lr * weight_decay) * p
        if g.ndim > 1:
            row = toward(row, np.mean(g**2, axis=-1, keepdims=True), weight)
            col = toward(col, np.mean(g**2, axis=-2, keepdims=True), weight)
            v = row * col / np.maximum(np.mean(row, axis=-2, keepdims=True), eps1)
        else:
            v = toward(v, g**2, weight)
        u = g / np.sqrt(np.maximum(v, eps1**2))
        size = norm(u) / math.sqrt(u.size) / d
        p = p - rate / (size if size > 1 else 1.0) * u
        path.append(p)
    return path


def newton_schulz(
    g: Array, coefficients: tuple[float, float, float], eps: float, steps: int
) -> Array:
    """Jordan et al. 2024: singular values s ← a s + b s³ + c s⁵, from g scaled to norm 1.

    On the wide side, where the products are the smallest.
    """
    a, b, c = coefficients
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(eps, norm(x))
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(
    p: Array,
    gradients: Gradients,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    maximize: bool = False,
) -> list[Array]:
    """Jordan et al. 2024, as torch.optim.Muon, whose momentum is an average."""
    rows, columns = p.shape
    wide = {
        None: math.sqrt(max(1.0, rows / columns)),
        "original": math.sqrt(max(1.0, rows / columns)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
    }[adjust_lr_fn]
    path, b = [], np.zeros_like(p)
    for gradient in gradients:
        g = signed(gradient(p), maximize)
        b = toward(b, g, 1 - momentum)
        u = toward(g, b, momentum) if nesterov else b
        p = (1 - lr * weight_decay) * p - lr * wide * newton_schulz(
            u, ns_coefficients, eps, ns_steps
        )
        path.append(p)
    return path
