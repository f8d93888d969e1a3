"""The optimizers' classes: each rule with a storage, here `Optimizer`'s for arrays."""

from abc import ABCMeta
from typing import Any

from .optimizers import Optimizer
from .rules import RULES

__all__ = [*RULES]


def faces_of(storage: type, module: str) -> dict[str, Any]:
    """A class for each rule, for ``module``, that holds its arrays as ``storage`` does."""
    made: dict[str, Any] = {}
    for name, rule in RULES.items():
        body = {"__module__": module, "__doc__": rule.__doc__}
        made[name] = ABCMeta(name, (rule, storage), body)
    return made


globals().update(faces_of(Optimizer, __name__))
