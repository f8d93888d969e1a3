"""The optimizers' classes for PyTorch's parameters: each rule with `Optimizer` for its storage."""

from ...optim.faces import faces_of
from ...optim.rules import RULES
from .optimizer import Optimizer

__all__ = [*RULES]

globals().update(faces_of(Optimizer, __name__))
