"""The optimizers, one a file: constructor, bounds, traits, and the rule of the core that they name.

Each has the constructor of its namesake in ``torch.optim``, those that PyTorch lacks that of their
papers. The faces for arrays and for PyTorch, the command line's choice and the README's table are
made from `RULES`.
"""

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .adan import Adan
from .asgd import ASGD
from .lamb import LAMB
from .lars import LARS
from .lion import Lion
from .muon import Muon
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .rule import Rule
from .sgd import SGD

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "RULES",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
]

#: By name.
RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (
        SGD,
        Adagrad,
        RMSprop,
        Adam,
        AdamW,
        Rprop,
        Adadelta,
        Adamax,
        NAdam,
        RAdam,
        ASGD,
        Lion,
        Adan,
        LAMB,
        LARS,
        Adafactor,
        Muon,
    )
}
