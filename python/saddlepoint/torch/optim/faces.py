"""The optimizers of PyTorch's parameters: the rules, each with `Optimizer` for its storage."""

from ...optim.rules import RULES, faces
from .optimizer import Optimizer

__all__ = [*RULES]

globals().update(faces(Optimizer, __name__))
