"""The faces that PyTorch sees; importing this imports PyTorch.

``saddlepoint.torch.optim`` has drop-in optimizers, ``saddlepoint.torch.nn`` batch normalization;
`objective` makes of a module's loss what `saddlepoint.hessian` and all that stands on it take.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "saddlepoint.torch: expected PyTorch to be installed (pip install 'saddlepoint[torch]')"
    ) from error

from . import nn, optim
from .network import to_network
from .objective import ModuleObjective, objective
from .stability import AdamStability, adam_stability
from .theta import get_theta, load_theta

__all__ = [
    "AdamStability",
    "ModuleObjective",
    "adam_stability",
    "get_theta",
    "load_theta",
    "nn",
    "objective",
    "optim",
    "to_network",
]
