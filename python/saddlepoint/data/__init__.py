"""Data sets and the files they come from: IDX, NPZ, CSV, the bundled digits; and safetensors.

What a file holds is checked when it is read. One that is not what it should be raises
``FileFormatError`` with a line that names it; contents no model can use raise ``ValueError``.
"""

from .dataset import Dataset, digits, load
from .idx import read_idx
from .streams import MAX_BYTES
from .tables import DataWarning
from .tensors import read_safetensors, write_safetensors

__all__ = [
    "MAX_BYTES",
    "DataWarning",
    "Dataset",
    "digits",
    "load",
    "read_idx",
    "read_safetensors",
    "write_safetensors",
]
