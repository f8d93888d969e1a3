"""Drop-in optimizers for ``torch.optim``: its constructors, groups, hooks and state dicts.

Each is a ``torch.optim.Optimizer``, so learning-rate schedulers, closures, ``GradScaler`` and
trainers take it. A step is one native call over all parameters. `saddlepoint.optim` tells the
keyword arguments that all of them share; ``max_norm`` stands for ``clip_grad_norm_``.
"""

from . import faces
from .faces import *  # noqa: F403
from .optimizer import Optimizer as Optimizer

__all__ = ["Optimizer"]
__all__ += faces.__all__
