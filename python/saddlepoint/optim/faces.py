"""The optimizers of arrays: the rules, each with `Optimizer` for its storage."""

from .optimizers import Optimizer
from .rules import RULES, faces

__all__ = [*RULES]

globals().update(faces(Optimizer, __name__))
