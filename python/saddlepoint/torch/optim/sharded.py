"""Parameters of which each process has a share: DTensors, and norms over processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ...errors import expected

__all__ = ["norm_over_processes", "of_shard", "refuse_shard", "shard", "wants_processes"]


def _dtensor() -> Any:
    """The class; None as long as nobody uses it, since to import it takes long."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def _is_dtensor(t: Any) -> bool:
    kind = _dtensor()
    return kind is not None and isinstance(t, kind)


def shard(t: Any, like: Any = None) -> Any:
    """This process's part of a DTensor; any other tensor as it is.

    With ``like``, a gradient must lie over the processes as its parameter does.
    """
    if not _is_dtensor(t):
        return t
    if like is not None and (t.device_mesh, t.placements) != (like.device_mesh, like.placements):
        raise ValueError(expected("grads", f"placements {like.placements}", t.placements))
    return t._local_tensor


def of_shard(t: Tensor, like: Any) -> Tensor:
    """The tensor of which ``t`` is a part, if ``like`` is a DTensor and lies so."""
    if not _is_dtensor(like):
        return t
    lies = {"device_mesh": like.device_mesh, "placements": like.placements}
    size = {"shape": like.shape, "stride": like.stride()}
    made: Tensor = _dtensor().from_local(t, **lies, **size, run_check=False)
    return made


def refuse_shard(p: Tensor, what: str) -> None:
    """Raise TypeError for a part of a tensor, where ``what`` works on whole ones."""
    for kind, found in (("DTensor", _is_dtensor(p)), ("FSDP", hasattr(p, "_fsdp_flattened"))):
        if found:
            raise TypeError(expected("params", f"whole tensors for {what}", f"a shard ({kind})"))


def wants_processes(params: Sequence[Tensor], group: Any) -> bool:
    """Whether a norm of gradients is a sum over processes.

    Raises
    ------
    ValueError
        Where it cannot be told: plain tensors in one of several processes may be whole gradients
        (DistributedDataParallel) or a share (FSDP1, ZeroRedundancyOptimizer).
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    if group is not None and group != "local" and not isinstance(group, distributed.ProcessGroup):
        raise TypeError(expected("process_group", "a group, 'local' or None", repr(group)))
    if distributed.get_world_size() == 1 or (
        group == "local" and not any(map(_is_dtensor, params))
    ):
        return False
    if group is None and not all(_is_dtensor(p) for p in params):
        wanted = "the processes that share the gradients, or 'local' where each has all of them"
        got = f"None in one of {distributed.get_world_size()} processes"
        raise ValueError(expected("process_group", wanted, got))
    return True


def norm_over_processes(grads: Sequence[Any], group: Any) -> float:
    """√ of the sum of squares over the processes, in float64; each shard counts once."""
    # Every process joins in for the group, also without a gradient.
    sums: dict[Any, Tensor] = {} if group is None else {None: torch.zeros((), dtype=torch.float64)}
    for g in grads:
        key = None
        if _is_dtensor(g):
            split = tuple(a for a, place in enumerate(g.placements) if place.is_shard())
            key = (g.device_mesh, split)
        square = torch.linalg.vector_norm(shard(g.detach()), dtype=torch.float64).square()
        sums[key] = square + sums[key].to(square.device) if key in sums else square
    for key, value in sums.items():
        for processes in [group] if key is None else [key[0].get_group(a) for a in key[1]]:
            distributed.all_reduce(value, group=processes)
    return float(sum(float(value) for value in sums.values()) ** 0.5)
