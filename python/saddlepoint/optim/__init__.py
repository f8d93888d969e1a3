"""Optimizers: fused updates of arrays in place, and schedules of their rate.

Each takes what its namesake in ``torch.optim`` takes, and by keyword:

max_norm : float, optional
    Gradients are scaled so that the norm of all of them is at most this; `Optimizer.grad_norm`.
check_finite : bool
    A step is left out where the norm of the gradients is not finite (one of them is not, or in
    float64 the norm overflows); `Optimizer.skipped`. Gradients are zeroed all the same.
ema_decay : float, optional
    ``ema ← ema + (1 − ema_decay)(p − ema)`` after each step that was not left out;
    `Optimizer.ema`.
zero_grads : bool
    Gradients are set to zero when they have been used.
copies : sequence of arrays, optional
    Receive the new parameters in their own dtype, such as bfloat16.
state_dtype : "float32", "float64" or "bfloat16", optional
    Of the states; float32 if not given, float64 for float64 parameters.
master : bool
    For bfloat16 parameters: the 16 bits below them are kept, so that the parameter is the
    rounding of an exact float32 one.
stochastic_rounding : int, optional
    The seed by which 16-bit parameters and states are rounded up or down at random, so that the
    mean is kept. The bits depend on the seed, the step, the array's number and the element alone.
decay_mask : callable or sequence of bool, optional
    For which parameters ``weight_decay`` holds, such as ``lambda p: p.ndim > 1``.
process_group : optional
    In `saddlepoint.torch.optim`: the processes over which ``max_norm`` and ``check_finite`` sum,
    where each has a share of the gradients (FSDP1; ZeRO, by `functools.partial`, since
    ``ZeroRedundancyOptimizer`` keeps the keyword for itself); "local" where each has all of them
    (DistributedDataParallel). DTensors tell by themselves. Without it several processes raise.
foreach, fused, capturable
    Accepted, since the result is the same. ``differentiable=True`` raises.

All of it is one pass over memory, after one over the gradients when their norm is needed.
"""

from . import faces, schedule
from .faces import *  # noqa: F403
from .optimizers import Optimizer as Optimizer

__all__ = ["Optimizer", "schedule"]
__all__ += faces.__all__
