"""`saddlepoint.torch.optim` where each process has a share: FSDP, ZeRO; and where it has all.

All processes run all cases; the tests look at what they told.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import saddlepoint.torch.optim as ours

pytestmark = pytest.mark.slow

WORLD, STEPS, MAX_NORM = 2, 4, 0.05


def module() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def gradient_step(model: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
    """The same batch on every process, so that gradients are those of one."""
    numbers = torch.Generator().manual_seed(k)
    x = torch.randn(8, 6, generator=numbers, dtype=torch.float64)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def trained(model: nn.Module, optimizer: Any, norms: bool = True) -> dict[str, Any]:
    seen = []
    for k in range(STEPS):
        gradient_step(model, optimizer, k)
        if norms:
            seen.append(optimizer.grad_norm)
    return {"norms": seen}


def full(model: nn.Module) -> list[Tensor]:
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in model.parameters()]


# The cases.


def fully_sharded() -> dict[str, Any]:
    """FSDP2: the parameters are DTensors; odd rows make the shares unequal."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = module()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = ours.AdamW(model.parameters(), lr=0.05, max_norm=MAX_NORM, ema_decay=0.5)
    told = trained(model, optimizer)
    first = next(iter(model.parameters()))
    entry = optimizer.state[first]
    told["kinds"] = [type(entry[name]).__name__ for name in ("exp_avg", "ema")]
    told["params"] = full(model)
    told["ema"] = [e.full_tensor() for e in optimizer.ema]
    # A checkpoint of PyTorch's own, into the middle of a run.
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    set_optimizer_state_dict(model, optimizer, saved)
    gradient_step(model, optimizer, STEPS)
    told["after"] = full(model)
    with pytest.raises(TypeError, match="whole tensors for Muon, got a shard"):
        ours.Muon([first])
    return told


def flat_shards() -> dict[str, Any]:
    """FSDP1: plain tensors that are a share of all."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    told: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out, and says so
        model = FullyShardedDataParallel(
            module(), device_id=torch.device("cpu"), use_orig_params=True
        )
        refused = ours.AdamW(model.parameters(), lr=0.05, max_norm=MAX_NORM)
        try:
            gradient_step(model, refused, 0)
        except ValueError as error:
            told["refused"] = str(error)
        optimizer = ours.AdamW(
            model.parameters(), lr=0.05, max_norm=MAX_NORM, process_group=dist.group.WORLD
        )
        told |= trained(model, optimizer)
        with FullyShardedDataParallel.summon_full_params(model):
            told["params"] = [p.detach().clone() for p in model.parameters()]
    return told


def zero_redundancy() -> dict[str, Any]:
    """ZeRO: each process steps some of the parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = module()

    def inner(params: Any, **given: Any) -> ours.AdamW:
        # ZeRO keeps `process_group` for itself, so the inner optimizer is told apart.
        return ours.AdamW(params, **given, max_norm=MAX_NORM, process_group=dist.group.WORLD)

    optimizer = ZeroRedundancyOptimizer(model.parameters(), inner, lr=0.05)
    told = trained(model, optimizer, norms=False)
    told["params"] = full(model)
    return told


def whole_gradients() -> dict[str, Any]:
    """DistributedDataParallel: each process has all of them."""
    model = module()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = ours.AdamW(model.parameters(), lr=0.05, max_norm=MAX_NORM, process_group="local")
    told = trained(parallel, optimizer)
    told["params"] = full(model)
    return told


def not_finite() -> dict[str, Any]:
    """A gradient that is infinite on one process spoils the step on all of them."""
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=1.0, check_finite=True, zero_grads=True,
                         process_group=dist.group.WORLD)  # fmt: skip
    p.grad = torch.full((3,), torch.inf if dist.get_rank() == 0 else 1.0)
    optimizer.step()
    told = {"skipped": optimizer.skipped, "p": p.tolist(), "g": p.grad.tolist()}
    p.grad = torch.ones(3)
    optimizer.step()
    return {**told, "norm": optimizer.grad_norm, "skipped after": optimizer.skipped}


CASES = (fully_sharded, flat_shards, zero_redundancy, whole_gradients, not_finite)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    told: dict[str, Any] = {}
    try:
        for case in CASES:
            told[case.__name__] = case()
    except BaseException:
        told["failed"] = traceback.format_exc()
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    told = [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(WORLD)]
    for one in told:
        assert "failed" not in one, one["failed"]
    return told


def alone(count: int) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """The same by PyTorch, in one process."""
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    norms, average = [], [p.detach().clone() for p in model.parameters()]
    for k in range(count):
        numbers = torch.Generator().manual_seed(k)
        x = torch.randn(8, 6, generator=numbers, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        optimizer.step()
        average = [
            e + 0.5 * (p.detach() - e) for e, p in zip(average, model.parameters(), strict=True)
        ]
    return norms, [p.detach() for p in model.parameters()], average


def assert_near(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert [g.shape for g in got] == [w.shape for w in wanted]
    for g, w in zip(got, wanted, strict=True):
        assert float((g - w).abs().max()) <= 1e-12


@pytest.mark.parametrize("case", ["fully_sharded", "flat_shards", "whole_gradients"])
def test_the_norm_is_that_of_one_process(answers: list[dict[str, Any]], case: str) -> None:
    norms, params, _ = alone(STEPS)
    for told in answers:
        assert told[case]["norms"] == pytest.approx(norms, rel=1e-12)
        assert_near(told[case]["params"], params)


def test_zero_clips_by_the_norm_of_all(answers: list[dict[str, Any]]) -> None:
    for told in answers:
        assert_near(told["zero_redundancy"]["params"], alone(STEPS)[1])


def test_dtensors_are_stepped_and_saved_as_pytorchs(answers: list[dict[str, Any]]) -> None:
    for told in answers:
        assert told["fully_sharded"]["kinds"] == ["DTensor", "DTensor"]
        assert_near(told["fully_sharded"]["ema"], alone(STEPS)[2])
        assert_near(told["fully_sharded"]["after"], alone(STEPS + 1)[1])


def test_a_share_without_its_group_is_refused(answers: list[dict[str, Any]]) -> None:
    for told in answers:
        assert told["flat_shards"]["refused"].startswith("process_group: expected the processes")


def test_all_processes_leave_a_step_out_together(answers: list[dict[str, Any]]) -> None:
    for told in answers:
        assert told["not_finite"] == {
            "skipped": True, "p": [1.0] * 3, "g": [0.0] * 3,
            "norm": pytest.approx(6.0**0.5), "skipped after": False,
        }  # fmt: skip
