"""The loss of any PyTorch module as an objective: right products, and a module left alone."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import modules
import saddlepoint as sp
import saddlepoint.torch as st
from modules import EXAMPLES, build
from saddlepoint.torch.batches import mapped, tensors
from saddlepoint.torch.twice import TwiceDifferentiable


def plain_gradient(name: str) -> Callable[[Tensor], Tensor]:
    """∇L(θ) by PyTorch alone, on a copy of the module that holds θ itself."""
    module, data, example = build(name)
    module = copy.deepcopy(module)
    norms = (nn.modules.batchnorm._NormBase, st.nn.BatchNormAct)
    for m in module.modules():
        m.training = False
    if example.options.get("dropout") == "fixed":
        module.train()
    for m in module.modules():
        if isinstance(m, norms):
            m.train(example.options.get("batch_norm") == "batch")
    params = [p for p in module.parameters() if p.requires_grad]

    def gradient(theta: Tensor, create_graph: bool = False) -> Tensor:
        with torch.no_grad():
            at = 0
            for p in params:
                p.copy_(theta[at : at + p.numel()].view_as(p))
                at += p.numel()
        with torch.random.fork_rng(), torch.nn.attention.sdpa_kernel(
            torch.nn.attention.SDPBackend.MATH
        ):  # fmt: skip
            torch.manual_seed(0)
            if example.loss in (modules.own_loss, modules.reconstruction):
                loss = example.loss(module, data)
            else:
                inputs, target = data
                if isinstance(inputs, dict):
                    output = module(**inputs)
                elif isinstance(inputs, tuple):
                    output = module(*inputs)
                else:
                    output = module(inputs)
                loss = example.loss(output, target)
            found = torch.autograd.grad(
                loss, params, create_graph=create_graph, materialize_grads=True, allow_unused=True
            )
        return torch.cat([g.reshape(-1) for g in found])

    gradient.params = params  # type: ignore[attr-defined]
    return gradient


NOT_TWICE = ("weight norm", "bag of words", "weighed bags")


@pytest.mark.parametrize("name", EXAMPLES)
def test_products_are_derivatives_of_the_gradient(name: str, rng: np.random.Generator) -> None:
    module, data, example = build(name)
    objective = st.objective(module, example.loss, data, **example.options)
    theta = st.get_theta(module)
    at = objective.linearize(theta)
    gradient = plain_gradient(name)
    assert_allclose(at.gradient, gradient(theta), rtol=1e-10, atol=1e-12)
    v, u = (torch.from_numpy(x) for x in rng.standard_normal((2, objective.size)))
    product = at.hvp(v)
    h = 1e-5
    quotient = (gradient(theta + h * v) - gradient(theta - h * v)) / (2 * h)
    scale = float(quotient.norm()) or 1.0
    assert float((product - quotient).norm()) <= 2e-7 * scale  # h² and rounding / h
    assert abs(float(u @ product) - float(v @ at.hvp(u))) <= 1e-12 * float(u.norm()) * scale
    # and double backward, on the module's own parameters, where PyTorch has it and has it right
    g = None if name in NOT_TWICE else gradient(theta, create_graph=True)
    if g is not None and g.requires_grad:
        params = gradient.params  # type: ignore[attr-defined]
        found = torch.autograd.grad(g @ v, params, materialize_grads=True, allow_unused=True)
        exact = torch.cat([f.reshape(-1) for f in found])
        assert_allclose(product, exact, rtol=0, atol=1e-12 * max(scale, 1.0))
    block = torch.stack([v, u], 1)
    assert_allclose(at.hvp(block), torch.stack([product, at.hvp(u)], 1), rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_module_is_found_again_as_it_was(name: str) -> None:
    module, data, example = build(name)
    modes = [i % 2 == 0 for i, _ in enumerate(module.modules())]
    for m, training in zip(module.modules(), modes, strict=True):
        m.training = training
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    state = {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    flags = [p.requires_grad for p in module.parameters()]
    addresses = [p.data_ptr() for p in module.parameters()]
    parameters = [p for m in module.modules() for p in m._parameters.values()]
    lists = [m._flat_weights for m in module.modules() if isinstance(m, nn.RNNBase)]
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    objective = st.objective(module, example.loss, data, **example.options)
    theta = st.get_theta(module) + 0.1
    at = objective.linearize(theta)
    at.hvp(theta)
    objective.loss(theta), objective.gradient(theta)
    assert [m.training for m in module.modules()] == modes
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, state[key])
    for p, flag, address in zip(module.parameters(), flags, addresses, strict=True):
        assert p.requires_grad == flag
        assert p.data_ptr() == address
        assert p.grad is None or torch.equal(p.grad, torch.ones_like(p))
    after = [p for m in module.modules() for p in m._parameters.values()]
    assert all(a is b for a, b in zip(parameters, after, strict=True))
    after = [m._flat_weights for m in module.modules() if isinstance(m, nn.RNNBase)]
    assert all(a is b for a, b in zip(lists, after, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert_array_equal(np.random.get_state()[1], drawn[1])  # noqa: NPY002
    assert random.getstate() == drawn[2]


def small(rows: int = 20, classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, classes))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    x = torch.randn(rows, 4, generator=draw, dtype=torch.float64)
    return module.double(), x, torch.randint(0, classes, (rows,), generator=draw)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_also_after_an_exception(fault: type[BaseException]) -> None:
    module, x, y = small()
    module.train()
    objective = st.objective(module, F.cross_entropy, (x, y))
    theta, drawn = st.get_theta(module), torch.get_rng_state()

    def stop(*_: Any) -> None:
        torch.rand(3)
        raise fault

    handle = module[2].register_forward_hook(stop)
    state = copy.deepcopy(module.state_dict())
    for call in (objective.loss, objective.gradient, objective.linearize):
        with pytest.raises(fault):
            call(theta)
        assert all(m.training for m in module.modules())
        assert torch.equal(torch.get_rng_state(), drawn)
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.is_grad_enabled()
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    handle.remove()
    assert objective.loss(theta) > 0.0


CUTS = (20,), (10, 10), (13, 7), (1, 12, 7)


def pieces(x: Tensor, y: Tensor, cut: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(cut)), y.split(list(cut)), strict=True))


def total_and_count(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    kept = target != 1
    return F.cross_entropy(output[kept], target[kept], reduction="sum"), kept.sum()


def mean_of_mine(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none").mean()


def sum_of_mine(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none").sum()


LOSSES: dict[str, Any] = {
    "mean": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "sum": partial(F.cross_entropy, reduction="sum"),
    "summing module": nn.CrossEntropyLoss(reduction="sum"),
    "ignored labels": nn.CrossEntropyLoss(ignore_index=1),
    "ignored by name": partial(F.cross_entropy, ignore_index=1),
    "class weights": nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
    "both": nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), ignore_index=2),
    "own mean": mean_of_mine,
    "own sum": sum_of_mine,
    "total and count": total_and_count,
}


@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_every_sample_weighs_the_same(name: str, cut: tuple[int, ...]) -> None:
    """In whatever batches: the loss is the function's of one batch of all."""
    module, x, y = small()
    whole = st.objective(module, LOSSES[name], (x, y))
    parts = st.objective(module, LOSSES[name], pieces(x, y, cut))
    theta = st.get_theta(module)
    module.eval()
    direct = LOSSES[name](module(x), y)
    if isinstance(direct, tuple):
        direct = direct[0] / direct[1]
    assert whole.loss(theta) == pytest.approx(float(direct.detach()), rel=1e-13)
    assert parts.loss(theta) == pytest.approx(whole.loss(theta), rel=1e-13)
    assert_allclose(parts.gradient(theta), whole.gradient(theta), rtol=1e-11, atol=1e-13)
    v = torch.ones_like(theta)
    assert_allclose(
        parts.linearize(theta).hvp(v), whole.linearize(theta).hvp(v), rtol=1e-11, atol=1e-12
    )


def test_a_mean_over_elements_counts_elements() -> None:
    x = torch.randn(9, 3, dtype=torch.float64)
    y = torch.randn(9, 2, dtype=torch.float64)
    module = nn.Linear(3, 2).double()
    for loss in (nn.MSELoss(), nn.L1Loss(), partial(F.huber_loss, delta=0.3)):
        theta = st.get_theta(module)
        parts = st.objective(module, loss, [(x[:2], y[:2]), (x[2:], y[2:])])
        assert parts.loss(theta) == pytest.approx(float(loss(module(x), y).detach()), rel=1e-13)


def test_a_loss_that_is_neither_mean_nor_sum_is_refused() -> None:
    module, x, y = small()

    def odd(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="sum") ** 0.5

    with pytest.raises(ValueError, match=r"loss: expected a mean or a sum .*\(total, count\)"):
        st.objective(module, odd, pieces(x, y, (13, 7)))
    assert (
        st.objective(module, odd, (x, y)).loss(st.get_theta(module)) > 0
    )  # of one batch it may be


def test_batch_statistics_are_of_the_batches_given() -> None:
    module, x, y = small()
    theta = st.get_theta(module)
    module.train()
    objective = st.objective(module, F.cross_entropy, pieces(x, y, (13, 7)), batch_norm="batch")
    wanted = sum(len(a) / 20 * F.cross_entropy(module(a), b) for a, b in pieces(x, y, (13, 7)))
    assert objective.loss(theta) == pytest.approx(float(wanted.detach()), rel=1e-13)
    with pytest.raises(ValueError, match="micro_batch: expected None, since batch statistics"):
        st.objective(module, F.cross_entropy, (x, y), batch_norm="batch", micro_batch=4)


@pytest.mark.parametrize("rows", [1, 3, 20, 50])
def test_micro_batches_change_nothing(rows: int) -> None:
    module, x, y = small()
    theta, v = st.get_theta(module), torch.ones(53, dtype=torch.float64)
    whole = st.objective(module, F.cross_entropy, [(x, y)]).linearize(theta)
    cut = st.objective(module, F.cross_entropy, [(x, y)], micro_batch=rows).linearize(theta)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-13)
    assert_allclose(cut.hvp(v), whole.hvp(v), rtol=1e-11, atol=1e-13)


def test_activations_beyond_the_budget_are_recomputed() -> None:
    module, x, y = small()
    theta, v = st.get_theta(module), torch.ones(53, 2, dtype=torch.float64)
    make = partial(st.objective, module, F.cross_entropy, pieces(x, y, (13, 7)), engine="autograd")
    kept, again = make(), make(memory_budget=100)
    assert not kept.recomputes
    assert again.recomputes
    assert again.linearize(theta)._graphs == []
    assert_array_equal(again.linearize(theta).hvp(v), kept.linearize(theta).hvp(v))


def test_loaders_are_read_once_in_their_order() -> None:
    module, x, y = small()
    reads = []

    class Counting(TensorDataset):
        def __getitem__(self, i: int) -> Any:
            reads.append(i)
            return super().__getitem__(i)

    loader = DataLoader(Counting(x, y), batch_size=6)
    objective = st.objective(module, F.cross_entropy, loader)
    theta = st.get_theta(module)
    assert objective.loss(theta) == pytest.approx(
        st.objective(module, F.cross_entropy, (x, y)).loss(theta), rel=1e-13
    )
    assert reads == list(range(20))
    assert objective.samples == 20
    with pytest.raises(ValueError, match=r"data: expected a loader with a fixed order .*shuffle"):
        st.objective(module, F.cross_entropy, DataLoader(TensorDataset(x, y), shuffle=True))
    generated = st.objective(module, F.cross_entropy, (pair for pair in pieces(x, y, (13, 7))))
    assert generated.loss(theta) == pytest.approx(objective.loss(theta), rel=1e-13)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]),
        ("3.*", ["3.weight", "3.bias"]),
        (["3.bias", "0.*"], ["0.weight", "0.bias", "3.bias"]),
        (lambda name, p: p.ndim == 2, ["0.weight", "3.weight"]),
    ],
    ids=["all", "pattern", "names", "predicate"],
)
def test_parameters_are_chosen(chosen: Any, names: list[str]) -> None:
    module, x, y = small()
    whole = st.objective(module, F.cross_entropy, (x, y))
    some = st.objective(module, F.cross_entropy, (x, y), params=chosen)
    assert list(some.layout.names) == names
    theta = st.get_theta(module, chosen)
    assert theta.numel() == some.size
    # A block of the whole Hessian.
    H = sp.hessian(whole, st.get_theta(module)).dense()
    at, places = 0, []
    for name, p in module.named_parameters():
        if name in names:
            places += range(at, at + p.numel())
        at += p.numel()
    block = H[np.ix_(places, places)]
    assert_allclose(sp.hessian(some, theta).dense(), block, rtol=0, atol=1e-13)


def test_blocks_are_restrictions() -> None:
    module, x, y = small()
    whole = st.objective(module, F.cross_entropy, (x, y))
    theta = st.get_theta(module)
    H, G = sp.hessian(whole, theta), sp.gauss_newton(whole, theta)
    some = st.objective(module, F.cross_entropy, (x, y), params="3.*")
    wanted = sp.hessian(some, st.get_theta(module, "3.*")).dense()
    assert_allclose(H.restrict("3.*").dense(), wanted, rtol=0, atol=1e-14)
    assert_allclose(G.restrict("3.*").dense(), wanted, rtol=0, atol=1e-12)  # the last is linear
    assert sp.curvature_by_layer(H).layers == ["0", "1", "3"]


def test_names_that_nothing_has_are_refused() -> None:
    module, x, y = small()
    with pytest.raises(
        ValueError, match=r"params: expected names of parameters \(0\.weight, .*wei"
    ):
        st.objective(module, F.cross_entropy, (x, y), params="0.weigth")
    with pytest.raises(TypeError, match="params: expected names or patterns, got int"):
        st.get_theta(module, [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="params: expected at least one parameter"):
        st.get_theta(module.requires_grad_(False))


def test_theta_goes_round() -> None:
    module, _, _ = small()
    theta = st.get_theta(module)
    assert theta.shape == (53,)
    assert not theta.requires_grad
    theta += 1.0
    assert not torch.equal(theta, st.get_theta(module))  # a copy
    version = module[0].weight._version
    st.load_theta(module, theta)
    assert torch.equal(st.get_theta(module), theta)
    assert module[0].weight._version > version  # autograd is told
    for other in (theta.numpy() - 1.0, sp.Vector.from_numpy(theta.numpy() - 1.0)):
        st.load_theta(module, theta)
        st.load_theta(module, other)
        assert torch.equal(st.get_theta(module), theta - 1.0)
    read_only = np.zeros(53)
    read_only.setflags(write=False)
    st.load_theta(module, read_only)
    assert not st.get_theta(module).any()
    for wrong in (theta[:-1], theta.float(), theta[:, None]):
        with pytest.raises((TypeError, ValueError), match="theta: expected"):
            st.load_theta(module, wrong)
    assert not st.get_theta(module).any()


def test_tied_weights_are_there_once() -> None:
    module, data, example = build("decoder")
    assert st.get_theta(module).numel() == sum(p.numel() for p in module.parameters())
    assert module.head.weight is module.embedding.weight
    st.objective(module, example.loss, data)
    assert module.head.weight is module.embedding.weight


def test_a_generator_is_read_once_whatever_comes() -> None:
    module, x, y = small()
    objective = st.objective(module, F.cross_entropy, iter(pieces(x, y, (13, 7))), micro_batch=5)
    theta = st.get_theta(module)
    for same in (objective.astype("float64"), pickle.loads(pickle.dumps(objective))):
        assert same.loss(theta) == pytest.approx(objective.loss(theta), rel=1e-14)
        assert same.samples == 20


def dense_gauss_newton(
    module: nn.Module, loss: Any, x: Tensor, y: Tensor, sums: bool = False
) -> np.ndarray:
    """JᵀH_L J, row by row, from Jacobians that PyTorch computes one output at a time."""
    params = list(module.parameters())
    output = module(x)
    rows = []
    for z in output.reshape(-1):
        g = torch.autograd.grad(z, params, retain_graph=True)
        rows.append(torch.cat([a.reshape(-1) for a in g]))
    J = torch.stack(rows)
    H = torch.autograd.functional.hessian(
        lambda z: loss(z.reshape(output.shape), y), output.detach().reshape(-1)
    )
    return (J.T @ H @ J).numpy()


@pytest.mark.parametrize("name", ["mean", "sum", "ignored labels", "class weights", "own mean"])
def test_gauss_newton_products(name: str) -> None:
    module, x, y = small()
    module.eval()
    wanted = dense_gauss_newton(module, LOSSES[name], x, y)
    theta = st.get_theta(module)
    for budget in (1 << 30, 100):
        objective = st.objective(module, LOSSES[name], pieces(x, y, (13, 7)), memory_budget=budget)
        G = sp.gauss_newton(objective, theta)
        assert_allclose(G.dense(), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    assert sp.eigsh(G, 2, "SA").values[0] > -1e-10
    assert sp.trace(G).value == pytest.approx(np.trace(wanted), rel=1e-10)


@pytest.mark.parametrize(
    "name", ["two outputs", "encoder", "lstm", "residual, batch", "weight norm"]
)
def test_gauss_newton_and_the_rest_are_the_hessian_where_outputs_are_linear(name: str) -> None:
    """vᵀGv is the second derivative of the loss along the line z + tJv of the outputs."""
    module, data, example = build(name)
    objective = st.objective(module, example.loss, data, **example.options)
    theta = st.get_theta(module)
    v = torch.from_numpy(np.random.default_rng(5).standard_normal(objective.size))
    at = objective.linearize(theta)
    batch, h = objective._batches[0], 1e-4

    def outputs(t: float) -> list[Tensor]:
        with objective._modes(), torch.no_grad():
            moved = objective.layout.split(theta + t * v)
            return list(tensors(objective._with(batch.call, moved)))

    ahead, here, behind = outputs(h), outputs(0.0), outputs(-h)
    slopes = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]

    def loss(t: float) -> float:
        line = iter([z + t * s for z, s in zip(here, slopes, strict=True)])
        with objective._modes(), torch.no_grad():
            whole = objective._with(batch.call)
            return float(objective._loss.of_output(mapped(lambda _: next(line), whole), batch)[0])

    quotient = (loss(h) - 2 * loss(0.0) + loss(-h)) / h**2
    assert float(v @ at.ggnvp(v)) == pytest.approx(quotient, rel=1e-4, abs=1e-5)


NATIVE: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)),
    "gelu": lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.GELU(), nn.Linear(6, 3)),
    "leaky": lambda: nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(4, 5), nn.Sigmoid()), nn.Identity(), nn.Linear(5, 3)
    ),
    "normalized": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, eps=1e-3), nn.Tanh(), nn.Linear(5, 3)
    ),
    "ours": lambda: nn.Sequential(
        nn.Linear(4, 5), st.nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 3)
    ),
    "linear": lambda: nn.Linear(4, 3),
}


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
@pytest.mark.parametrize("loss", ["classes", "squares"])
@pytest.mark.parametrize("name", NATIVE)
def test_the_native_engine_gives_the_same(name: str, loss: str, batch_norm: str) -> None:
    torch.manual_seed(4)
    module = NATIVE[name]().double().train()
    module(torch.randn(30, 4, dtype=torch.float64))  # statistics of something
    x = torch.randn(20, 4, dtype=torch.float64)
    y: Any = torch.randint(0, 3, (20,))
    if loss == "squares":
        y = torch.randn(20, 3, dtype=torch.float64)
    function: Any = {"classes": F.cross_entropy, "squares": nn.MSELoss()}[loss]
    theta, data = st.get_theta(module), pieces(x, y, (8, 8, 4))
    options = {"batch_norm": batch_norm}
    at = st.objective(module, function, data, engine="native", **options).linearize(theta)
    plain = st.objective(module, function, data, engine="autograd", **options).linearize(theta)
    assert (at.engine, plain.engine) == ("native", "autograd")
    assert st.objective(module, function, data, **options).linearize(theta).engine == "native"
    assert at.loss == plain.loss
    assert_array_equal(at.gradient, plain.gradient)  # PyTorch's, either way
    v = torch.randn(theta.numel(), 3, dtype=torch.float64)
    scale = float(plain.hvp(v).abs().max())
    assert_allclose(at.hvp(v), plain.hvp(v), rtol=0, atol=1e-12 * scale)
    assert_allclose(at.hvp(v[:, 0]), plain.hvp(v[:, 0]), rtol=0, atol=1e-12 * scale)
    assert_allclose(at.ggnvp(v), plain.ggnvp(v), rtol=0, atol=1e-12 * scale)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def hooked() -> nn.Module:
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda m, inputs, output: 2.0 * output)
    return module


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


FOREIGN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a subclass": (lambda: nn.Sequential(nn.Tanh(), Doubled(4, 3)), "got 1, a Doubled"),
    "a hook": (hooked, "hooked"),
    "twice": (twice, "each layer once, got one that is there twice"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "a ParametrizedLinear"
    ),
    "another": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softsign()), "got 1, a Softsign"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_the_native_engine_has_not_is_pytorchs(name: str) -> None:
    make, text = FOREIGN[name]
    module = make().double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    with pytest.raises(ValueError, match=text):
        st.to_network(module)
    with pytest.raises(ValueError, match=text):
        st.objective(module, F.cross_entropy, (x, y), engine="native")
    assert st.objective(module, F.cross_entropy, (x, y)).linearize(st.get_theta(module)).engine == (
        "autograd"
    )


@pytest.mark.parametrize(
    "loss",
    [LOSSES["sum"], LOSSES["ignored labels"], LOSSES["class weights"], LOSSES["own mean"],
     nn.CrossEntropyLoss(label_smoothing=0.1)],
    ids=["sum", "ignored", "weights", "own", "smoothed"],
)  # fmt: skip
def test_losses_that_the_native_engine_has_not_are_pytorchs(loss: Any) -> None:
    module, x, y = small()
    objective = st.objective(module, loss, (x, y))
    assert objective.linearize(st.get_theta(module)).engine == "autograd"
    with pytest.raises(ValueError, match="loss: expected a mean of cross-entropy or squares"):
        st.objective(module, loss, (x, y), engine="native")


def test_a_module_that_has_come_to_compute_something_else_is_pytorchs() -> None:
    """The gradient at θ is compared, whatever the layers are called."""
    module, x, y = small()
    objective = st.objective(module, F.cross_entropy, (x, y))
    theta = st.get_theta(module)
    assert objective.linearize(theta).engine == "native"
    module[0].register_forward_hook(lambda m, inputs, output: 1.01 * output)
    at = objective.linearize(theta)
    assert at.engine == "autograd"
    again = st.objective(module, F.cross_entropy, (x, y), engine="autograd").linearize(theta)
    v = torch.ones_like(theta)
    assert_array_equal(at.hvp(v), again.hvp(v))


def test_networks_made_of_modules() -> None:
    module, x, _ = small()
    net, params = st.to_network(module)
    outputs = sp.train.predict(net, params, x.numpy())
    with torch.no_grad():
        assert_allclose(outputs, module.eval()(x), rtol=1e-12)
    assert_array_equal(params.theta, st.get_theta(module))


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.AdamW, st.optim.Adam, st.optim.AdamW]
)
def test_the_curvature_that_adam_sees(make: Any) -> None:
    module, x, y = small()
    module.eval()
    groups = [
        {"params": module[0].parameters(), "lr": 0.02},
        {"params": [*module[1].parameters(), *module[3].parameters()]},
    ]
    adam = make(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    grads: list[Tensor] = []
    for _ in range(7):
        adam.zero_grad()
        F.cross_entropy(module(x), y).backward()
        grads.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
        adam.step()
    v = torch.zeros(53, dtype=torch.float64)
    for g in grads:
        v = 0.95 * v + 0.05 * g**2
    rate = torch.full((53,), 0.01, dtype=torch.float64)
    rate[:25] = 0.02
    p = ((v / (1 - 0.95**7)).sqrt() + 1e-6) / rate
    objective = st.objective(module, F.cross_entropy, (x, y))
    H = sp.hessian(objective, st.get_theta(module))
    dense = H.dense() / torch.sqrt(p[:, None] * p).numpy()
    found = st.adam_stability(H, adam)
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-6)
    assert found.limit == pytest.approx(2 * 1.8 / 0.2)
    assert found.stable
    assert_allclose(sp.preconditioned(H, p).dense(), dense, rtol=0, atol=1e-9 * np.abs(dense).max())


def test_adams_limit_is_where_its_steps_grow() -> None:
    """On a parabola with the second moments held: just below it, and just beyond."""
    beta, eta, root = 0.9, 0.01, 0.5  # √v̂
    limit = 2 * (1 + beta) / (1 - beta)
    for share, grows in ((0.98, False), (1.02, True)):
        curvature = share * limit * root / eta
        x, m = 1.0, 0.0
        for _ in range(3000):
            m = beta * m + (1 - beta) * curvature * x
            x -= eta * m / root
        assert (abs(x) > 1.0) == grows


def test_optimizers_without_second_moments_are_refused() -> None:
    module, x, y = small()
    H = sp.hessian(st.objective(module, F.cross_entropy, (x, y)), st.get_theta(module))
    with pytest.raises(TypeError, match="optimizer: expected one like Adam"):
        st.adam_stability(H, torch.optim.SGD(module.parameters()))
    with pytest.raises(ValueError, match=r"optimizer: expected one that has stepped 0\.weight"):
        st.adam_stability(H, torch.optim.Adam(module.parameters()))
    with pytest.raises(TypeError, match=r"H: expected an operator of saddlepoint\.torch"):
        st.adam_stability(sp.hessian(sp.surfaces.Saddle(), np.zeros(2)), None)
    with pytest.raises(ValueError, match="diagonal: expected finite numbers above 0"):
        sp.preconditioned(H, torch.zeros(53, dtype=torch.float64))


def test_gauss_newton_needs_outputs() -> None:
    module, data, example = build("returns its loss")
    theta = st.get_theta(module)
    at = st.objective(module, example.loss, data).linearize(theta)
    with pytest.raises(TypeError, match=r"loss: expected loss\(output, target\), got one of"):
        at.ggnvp(theta)
    with pytest.raises(TypeError, match="objective: expected one with Gauss-Newton products"):
        sp.gauss_newton(sp.surfaces.Saddle(), np.zeros(2))


@pytest.mark.parametrize("kind", ["torch", "numpy", "Vector"])
def test_arrays_come_back_as_they_were_given(kind: str) -> None:
    module, x, y = small()
    objective = st.objective(module, F.cross_entropy, (x, y))
    host = st.get_theta(module).numpy()
    theta: Any = {
        "torch": torch.from_numpy,
        "numpy": np.array,
        "Vector": sp.Vector.from_numpy,
    }[kind](host)
    at = objective.linearize(theta)
    assert type(at.gradient) is type(theta)
    assert type(at.hvp(theta)) is type(theta)
    H = sp.hessian(objective, theta)
    wanted = sp.hessian(objective, host).dense()
    assert_allclose(H.dense(), wanted, rtol=0, atol=1e-15)
    exact = np.linalg.eigvalsh(wanted)
    found = sp.eigsh(H, 4).values
    assert_allclose(found, exact[[0, 1, -2, -1]], rtol=1e-9)
    assert sp.classify(objective, theta).exact


def test_the_verdict_and_the_way_out_of_a_saddle() -> None:
    """tanh networks have a saddle at θ = 0: no gradient, and curvature of both signs."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    module.double()
    x = torch.randn(50, 3, dtype=torch.float64)
    y = x @ torch.randn(3, 2, dtype=torch.float64)
    objective = st.objective(module, F.mse_loss, (x, y))
    st.load_theta(module, torch.zeros(20, dtype=torch.float64))
    theta = st.get_theta(module)
    point = sp.classify(objective, theta)
    assert point.kind == "saddle"
    moved = sp.escape(objective, theta)
    st.load_theta(module, moved.theta)
    assert objective.loss(st.get_theta(module)) < point.loss
    assert float(F.mse_loss(module(x), y).detach()) == pytest.approx(moved.loss_after, rel=1e-12)


@pytest.mark.parametrize("name", ["residual, batch", "encoder", "lstm", "layer norm"])
def test_products_verify(name: str) -> None:
    module, data, example = build(name)
    theta = st.get_theta(module)
    for dtype in (None, "float32"):
        objective = st.objective(module, example.loss, data, dtype=dtype, **example.options)
        at = theta if dtype is None else theta.float()
        assert sp.hessian(objective, at).verify().ok


def test_other_precisions_are_asked_for() -> None:
    module, x, y = small()
    low = copy.deepcopy(module).to(torch.bfloat16)
    data = (x.to(torch.bfloat16), y)
    with pytest.raises(TypeError, match=r"module: expected parameters of float32.*got bfloat16"):
        st.objective(low, F.cross_entropy, data)
    objective = st.objective(low, F.cross_entropy, data, dtype="float64")
    assert objective.dtype == np.float64
    theta = objective.get_theta()
    wide = copy.deepcopy(low).double()
    wanted = F.cross_entropy(wide.eval()(data[0].double()), y)
    assert objective.loss(theta) == pytest.approx(float(wanted.detach()), rel=1e-12)
    assert low[0].weight.dtype is torch.bfloat16
    narrow = st.objective(module, F.cross_entropy, (x, y)).astype("float32")
    assert narrow.dtype == np.float32
    assert narrow.loss(narrow.get_theta()) == pytest.approx(
        st.objective(module, F.cross_entropy, (x, y)).loss(st.get_theta(module)), rel=1e-5
    )


def broken(change: Callable[[nn.Module], Any]) -> nn.Module:
    module = small()[0]
    change(module)
    return module


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3, dtype=torch.complex128))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: 3, TypeError, "module: expected a torch.nn.Module, got int"),
    "lazy": (lambda: nn.LazyLinear(3), TypeError, "weight to have a shape, got a lazy one"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), TypeError, "in memory, got device meta"),
    "complex": (Complex, TypeError, "dense real numbers, got complex128"),
    "sparse": (
        lambda: broken(
            lambda m: setattr(m[0], "weight", nn.Parameter(torch.eye(4).double().to_sparse()))
        ),
        TypeError,
        "dense real numbers, got sparse_coo",
    ),
    "mixed": (lambda: broken(lambda m: m[0].float()), TypeError, "got float32, float64"),
    "nothing": (lambda: nn.Tanh(), ValueError, "params: expected at least one parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_modules_without_a_hessian_are_refused(name: str) -> None:
    make, kind, text = REFUSED[name]
    _, x, y = small()
    with pytest.raises(kind, match=text):
        st.objective(make(), F.cross_entropy, (x, y))


@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates its own quantization
def test_quantized_modules_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    with pytest.raises(TypeError, match="no quantized parts"):
        st.objective(quantized, F.mse_loss, (torch.zeros(2, 4), torch.zeros(2, 2)))


BAD_DATA: dict[str, tuple[Any, type[Exception], str]] = {
    "number": (3, TypeError, r"data: expected an \(input, target\) pair, a list of them"),
    "no batches": ([], ValueError, "data: expected at least one sample, got none"),
    "no rows": ((torch.zeros(0, 4), torch.zeros(0)), ValueError, "at least one sample"),
    "no target": (
        [torch.zeros(3, 4)], TypeError, r"expected \(input, target\) pairs.*got a Tensor"
    ),
    "triples": ([(1, 2, 3)], TypeError, "got a tuple of 3"),
    "no tensors": ([("a", "b")], TypeError, "data: expected batches with tensors, got str"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_are_none_are_refused(name: str) -> None:
    data, kind, text = BAD_DATA[name]
    with pytest.raises(kind, match=text):
        st.objective(small()[0], F.cross_entropy, data)


def test_losses_that_are_none_are_refused() -> None:
    module, x, y = small()
    with pytest.raises(TypeError, match=r"loss: expected a callable: loss\(output, target\)"):
        st.objective(module, "cross_entropy", (x, y))
    every = partial(F.cross_entropy, reduction="none")
    with pytest.raises(TypeError, match=r"loss: expected one number a batch.*\(20,\)"):
        st.objective(module, every, (x, y))


def ignores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["labels"])


def test_a_mean_over_some_labels_has_to_say_what_it_counts() -> None:
    module, x, y = small()
    y[::3] = -100
    batches = [{"x": a, "labels": b} for a, b in pieces(x, y, (13, 7))]
    with pytest.raises(ValueError, match=r"loss: expected \(total, count\), since labels"):
        st.objective(module, ignores, batches)

    def counts(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum")
        return total, (batch["labels"] >= 0).sum()

    theta = st.get_theta(module)
    module.eval()
    assert st.objective(module, counts, batches).loss(theta) == pytest.approx(
        float(F.cross_entropy(module(x), y).detach()), rel=1e-13
    )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.compile
def test_wrappers_are_taken_off() -> None:
    module, x, y = small()
    wanted = st.objective(module, F.cross_entropy, (x, y)).loss(st.get_theta(module))
    for wrapped in (torch.compile(module, backend="eager"), nn.DataParallel(module)):
        objective = st.objective(wrapped, F.cross_entropy, (x, y))
        assert objective.module is module
        assert objective.loss(st.get_theta(wrapped)) == wanted


def test_compiled_parts_run_as_they_are() -> None:
    module, x, y = small()
    plain = st.objective(module, F.cross_entropy, (x, y), engine="autograd")
    wanted = plain.linearize(st.get_theta(module))
    inside = nn.Sequential(torch.compile(module[0], backend="eager"), *module[1:])
    at = st.objective(inside, F.cross_entropy, (x, y)).linearize(st.get_theta(inside))
    v = torch.ones(53, dtype=torch.float64)
    assert_array_equal(at.hvp(v), wanted.hvp(v))


def test_points_and_directions_are_checked() -> None:
    module, x, y = small()
    objective = st.objective(module, F.cross_entropy, (x, y))
    theta = st.get_theta(module)
    for wrong in (theta.float(), theta[:5], "theta"):
        for call in (objective.loss, objective.gradient, objective.linearize):
            with pytest.raises((TypeError, ValueError), match="theta: expected"):
                call(wrong)
    at = objective.linearize(theta)
    for wrong in (theta.float(), theta[:5], theta[None]):
        with pytest.raises((TypeError, ValueError), match="v: expected"):
            at.hvp(wrong)


def test_a_point_is_kept_when_the_caller_moves_on() -> None:
    module, x, y = small()
    objective = st.objective(module, F.cross_entropy, (x, y))
    theta = st.get_theta(module)
    first = objective.linearize(theta)
    v = torch.ones_like(theta)
    wanted = first.hvp(v)
    theta += 1.0
    second = objective.linearize(theta)
    st.load_theta(module, theta)
    assert torch.equal(first.hvp(v), wanted)
    assert not torch.equal(second.hvp(v), wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.func
def test_vmap_over_normalization_is_still_wrong_in_pytorch() -> None:
    """Why blocks are a loop: PyTorch's batched backward of layer norm forgets its statistics."""
    module, data, example = build("layer norm")
    objective = st.objective(module, example.loss, data)
    theta = st.get_theta(module)
    exact = sp.hessian(objective, theta).dense()
    names = objective.layout.names

    def loss(flat: Tensor) -> Tensor:
        state = dict(zip(names, objective.layout.split(flat), strict=True))
        return example.loss(torch.func.functional_call(module, state, (data[0],)), data[1])

    theirs = torch.func.jacfwd(torch.func.jacrev(loss))(theta).numpy()
    wrong = np.abs(theirs - exact).max() / np.abs(exact).max()
    assert wrong > 1e-3, "PyTorch is right by now: blocks may be batched, and the README told"


def second_derivative(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor | None:
    """Along v, by double backward; None where PyTorch has none."""
    leaf = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    try:
        return torch.autograd.grad(g, leaf, v)[0]
    except NotImplementedError:
        return None


def test_what_pytorch_differentiates_once_or_wrongly() -> None:
    """What ``torch/twice.py`` is for: the day that it is right, the substitute goes."""
    v = torch.randn(5, 4, dtype=torch.float64)
    g, along = torch.rand(5, 1, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)

    def norm(v: Tensor) -> Tensor:
        return (torch._weight_norm(v, g, 0) ** 3).sum()

    theirs = second_derivative(norm, v, along)
    with TwiceDifferentiable():
        ours = second_derivative(norm, v, along)
    h, slopes = 1e-5, []
    for sign in (1, -1):
        leaf = (v + sign * h * along).requires_grad_()
        slopes.append(torch.autograd.grad(norm(leaf), leaf)[0])
    quotient = (slopes[0] - slopes[1]) / (2 * h)
    assert_allclose(ours, quotient, rtol=1e-6, atol=1e-6)
    assert theirs is not None
    assert float((theirs - quotient).norm() / quotient.norm()) > 1e-2

    words = torch.randint(0, 5, (3, 2))
    assert second_derivative(lambda w: F.embedding_bag(words, w).square().sum(), v, along) is None


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("form", ["table", "offsets", "last offset"])
def test_bags_are_those_of_pytorch(form: str, padding: int | None, mode: str) -> None:
    weight = torch.randn(6, 3, dtype=torch.float64)
    words = torch.tensor([0, 2, 2, 5, 1, 2, 5, 5])
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding}
    if form == "table":
        words = words.reshape(4, 2)
    else:
        offsets = [0, 3, 3, 5] + ([8] if form == "last offset" else [])
        options |= {"offsets": torch.tensor(offsets), "include_last_offset": len(offsets) == 5}
    if mode == "sum":
        options["per_sample_weights"] = torch.rand(words.shape, dtype=torch.float64)
    wanted = F.embedding_bag(words, weight, **options)
    with TwiceDifferentiable():
        found = F.embedding_bag(words, weight, **options)
    assert_allclose(found, wanted, rtol=1e-14, atol=1e-15)


def test_modules_that_write_to_their_parameters_leave_theta_alone() -> None:
    module = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2)).double()
    data = torch.randint(0, 5, (7, 2)), torch.randint(0, 2, (7,))
    theta = st.get_theta(module)
    before = theta.clone()
    for params in (None, "2.*"):  # the embedding held fixed, too
        objective = st.objective(module, F.cross_entropy, data, params=params)
        some = theta if params is None else st.get_theta(module, params)
        objective.loss(some), objective.gradient(some), objective.linearize(some)
        assert torch.equal(theta, before)
        assert torch.equal(st.get_theta(module), before)


def of_two(rank: int, folder: str) -> None:
    """One of two processes: rank 0 has 13 samples in two batches, rank 1 the other 7."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=60), 2, rank)
    try:
        module, x, y = small()
        mine = [(x[:8], y[:8]), (x[8:13], y[8:13])] if rank == 0 else [(x[13:], y[13:])]
        told = {}
        for name, wrapped in (
            ("plain", module),
            ("DDP", nn.parallel.DistributedDataParallel(module)),
        ):
            objective = st.objective(wrapped, LOSSES["both"], mine, group=True)
            theta = st.get_theta(wrapped)
            at = objective.linearize(theta)
            told[name] = {
                "loss": torch.tensor([objective.loss(theta), at.loss], dtype=torch.float64),
                "gradient": objective.gradient(theta),
                "products": at.hvp(torch.eye(53, dtype=torch.float64)[:, :3]),
                "eigenvalues": torch.from_numpy(sp.eigsh(sp.hessian(objective, theta), 2).values),
            }
        torch.save(told, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_the_data(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(of_two, (str(tmp_path),), nprocs=2)
    module, x, y = small()
    whole = st.objective(module, LOSSES["both"], (x, y))
    theta = st.get_theta(module)
    at = whole.linearize(theta)
    for rank in (0, 1):
        for told in torch.load(tmp_path / f"{rank}.pt").values():
            assert_allclose(told["loss"], [at.loss] * 2, rtol=1e-12)
            assert_allclose(told["gradient"], at.gradient, rtol=0, atol=1e-13)
            wanted = at.hvp(torch.eye(53, dtype=torch.float64)[:, :3])
            assert_allclose(told["products"], wanted, rtol=0, atol=1e-12)
            exact = np.linalg.eigvalsh(sp.hessian(whole, theta).dense())
            assert_allclose(told["eigenvalues"], exact[[0, -1]], rtol=1e-9)


def test_a_group_needs_processes() -> None:
    module, x, y = small()
    with pytest.raises(ValueError, match=r"group: expected torch\.distributed to be initialized"):
        st.objective(module, F.cross_entropy, (x, y), group=True)


def test_pytorchs_modules_are_told_the_way() -> None:
    module, x, y = small()
    for call in (
        lambda: sp.classify(module, st.get_theta(module)),
        lambda: sp.hessian(module, st.get_theta(module)),
        lambda: sp.NetworkObjective(module, sp.nn.CrossEntropy(), x.numpy(), y.numpy()),
        lambda: sp.fit(module, None, sp.nn.CrossEntropy(), (x.numpy(), y.numpy())),
    ):
        with pytest.raises(TypeError, match=r"saddlepoint\.torch\.objective\(module, loss, data\)"):
            call()
