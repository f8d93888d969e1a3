"""How a module is run for analysis, and how everything about it is found again as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from .nn.modules import BatchNormAct
from .twice import TwiceDifferentiable

__all__ = ["couples_rows", "kept_random_state", "normalizations", "precise", "running", "seed"]


def normalizations(module: nn.Module) -> list[nn.Module]:
    """The submodules that keep running statistics, ours included."""
    kinds = (_NormBase, BatchNormAct)
    return [m for m in module.modules() if isinstance(m, kinds)]


def couples_rows(module: nn.Module, batch_norm: str) -> bool:
    """Whether a sample's output depends on the others of its batch."""
    alone = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return any(
        (batch_norm == "batch" or getattr(m, "running_mean", m) is None)
        for m in normalizations(module)
        if not isinstance(m, alone)
    )


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """PyTorch's, NumPy's and Python's generators go on where they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed(device: torch.device, value: int) -> None:
    """Seed the generators that `kept_random_state` puts back: of the host and of one device."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextmanager
def precise(device: torch.device, cudnn: bool = True) -> Iterator[None]:
    """float32 as it is, without TensorFloat-32 and bfloat16 inside; cuDNN, unless it is out."""
    matmul, now = torch.get_float32_matmul_precision(), torch.backends.cudnn
    if device.type == "cpu" and matmul == "highest":
        yield
        return
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(
                now.flags(
                    enabled=now.enabled and cudnn,
                    benchmark=now.benchmark,
                    deterministic=now.deterministic,
                    allow_tf32=False,
                )
            )
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        yield


@contextmanager
def running(
    module: nn.Module, device: torch.device, batch_norm: str, dropout: str
) -> Iterator[None]:
    """Run a module in given modes, in full precision, by kernels that can be differentiated twice.

    Normalizations are in training mode for ``batch_norm="batch"``, all other submodules for
    ``dropout="fixed"``.
    """
    norms = {part for m in normalizations(module) for part in m.modules()}
    before = [(m, m.training) for m in module.modules()]
    recurrent = any(isinstance(m, nn.RNNBase) for m, _ in before)  # one derivative in cuDNN
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(kept_random_state(device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(precise(device, not recurrent))
        stack.enter_context(TwiceDifferentiable())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for m, _ in before:
                m.training = batch_norm == "batch" if m in norms else dropout == "fixed"
            yield
        finally:
            for m, training in before:
                m.training = training
            torch.backends.mha.set_fastpath_enabled(fast_attention)
