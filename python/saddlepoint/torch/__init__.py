"""The faces that PyTorch sees; importing this imports PyTorch.

``saddlepoint.torch.optim`` has drop-in optimizers, ``saddlepoint.torch.nn`` batch normalization.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "saddlepoint.torch: expected PyTorch to be installed (pip install 'saddlepoint[torch]')"
    ) from error

from . import nn, optim

__all__ = ["nn", "optim"]
