"""Batch normalization modules for PyTorch, with activation and residual fused in.

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are ``torch.nn``'s with more options, `SyncBatchNorm`
shares statistics between processes, and `BatchNormAct` holds one of them with an activation and a
residual. `convert_batch_norm` and `convert_sync_batchnorm` put them into a model, and `to_torch`
takes them out. `functional.batch_norm` is what they call.
"""

from . import functional
from .convert import convert_batch_norm, convert_sync_batchnorm, to_torch
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct, SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct",
    "SyncBatchNorm",
    "convert_batch_norm",
    "convert_sync_batchnorm",
    "functional",
    "to_torch",
]
