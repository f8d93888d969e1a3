"""Optimizers: fused updates of arrays in place, and schedules of their rate."""

from . import schedule
from .optimizers import SGD, Adam, AdamW, Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "schedule"]
