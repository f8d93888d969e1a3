"""Both ends of the Hessian's spectrum of a PyTorch module, at parameters that nobody has seen.

Cold: linearizing, tracing and compiling count, since they are paid at each θ. All go on until the
true residual is below a thousandth of the largest eigenvalue, which is measured afterwards.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saddlepoint as sp

from . import peers
from .runner import Bar, Case, Contestant, Options

TITLE = "Both ends of the spectrum"
RESIDUAL = 1e-3
DOUBLE_BACKWARD = "torch double backward, graph kept, SciPy eigsh"


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """A perceptron, a residual network, a transformer; on a GPU one with 10⁷ parameters."""
    torch = peers.load("torch", options.device)
    if isinstance(torch, str):
        return
    rows = 8 if options.quick else 1
    yield partial(
        _case, torch, "784-512-512-10 on 4096", partial(_perceptron, 4096 // rows), options
    )
    yield partial(_case, torch, "ResNet-8 on 256", partial(_resnet, 8, 16, 256 // rows), options)
    yield partial(
        _case, torch, "encoder of 2 layers on 128", partial(_encoder, 128 // rows), options
    )
    if options.device == "cuda":
        more = partial(_resnet, 18, 64, 1000 // rows)
        # Alone, since it takes so long: it is to take less than a minute.
        yield partial(_case, torch, "ResNet-18 on 1000", more, options, top=5, once=True)


Problem = tuple[Any, Any, Any]  # module, inputs, labels


def _perceptron(rows: int, torch: Any) -> Problem:
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
    )
    return module, torch.randn(rows, 784), torch.randint(0, 10, (rows,))


def _resnet(layers: int, width: int, rows: int, torch: Any) -> Problem:
    """As for CIFAR-10: stages of blocks of two convolutions, a mean, a linear layer."""
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.norm1 = _conv(nn, i, o, 3, stride), nn.BatchNorm2d(o)
            self.conv2, self.norm2 = _conv(nn, o, o, 3, 1), nn.BatchNorm2d(o)
            self.down = None if i == o else nn.Sequential(_conv(nn, i, o, 1, stride))

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
            return F.relu(y + (x if self.down is None else self.down(x)))

    stages, each = (4, 2) if layers == 18 else (3, 1)
    parts = [_conv(nn, 3, width, 3, 1), nn.BatchNorm2d(width), nn.ReLU()]
    i = width
    for stage in range(stages):
        for block in range(each):
            o = width * 2**stage
            parts.append(Block(i, o, 2 if stage and not block else 1))
            i = o
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))
    x, y = torch.randn(rows, 3, 32, 32), torch.randint(0, 10, (rows,))
    module.train()
    with torch.no_grad():
        module(x[:64])  # running statistics of something
    return module, x, y


def _conv(nn: Any, i: int, o: int, size: int, stride: int) -> Any:
    return nn.Conv2d(i, o, size, stride, size // 2, bias=False)


def _encoder(rows: int, torch: Any) -> Problem:
    nn = torch.nn

    class Encoder(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(100, 64)
            layer = nn.TransformerEncoderLayer(
                64, 4, 128, dropout=0.0, activation="gelu", batch_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(64, 10)

        def forward(self, words: Any) -> Any:
            return self.head(self.encoder(self.embedding(words)).mean(1))

    return Encoder(), torch.randint(0, 100, (rows, 32)), torch.randint(0, 10, (rows,))


def _case(
    torch: Any,
    name: str,
    make: Callable[[Any], Problem],
    options: Options,
    top: int = 1,
    once: bool = False,
) -> Case:
    """λmax (or the ``top`` largest) and λmin."""
    torch.manual_seed(0)
    module, x, y = make(torch)
    module, x, y = module.to(options.device), x.to(options.device), y.to(options.device)
    module.eval()
    loss = torch.nn.functional.cross_entropy
    start = importlib.import_module("saddlepoint.torch").get_theta(module)
    points = (start * (1.0 + 1e-4 * k) for k in count())
    ways = {"saddlepoint": ("saddlepoint", partial(_ours, module, loss, x, y, top))}
    if not once:
        way = partial(_double_backward, torch, module, loss, x, y, top)
        ways[DOUBLE_BACKWARD] = ("torch", way)

    def call(way: Callable[[Any], Any]) -> Any:
        return way(next(points))

    return Case(
        f"λmin and {'λmax' if top == 1 else f'{top} largest'}, {name}",
        {
            "parameters": start.numel(),
            "samples": len(x),
            "dtype": "float32",
            "residual": RESIDUAL,
            "loss": "cross-entropy",
        },
        [
            Contestant(n, library, partial(call, way), np.asarray)
            for n, (library, way) in ways.items()
        ],
        bars=[Bar("torch", 3.0)],
        tolerance=0.02,  # at θ that differ by a thousandth
        budget=options.budget(60.0),
        once=once,
    )


def _ours(module: Any, loss: Any, x: Any, y: Any, top: int, theta: Any) -> NDArray[Any]:
    st = importlib.import_module("saddlepoint.torch")
    H = sp.hessian(st.objective(module, loss, (x, y)), theta)
    # One Krylov space for both ends.
    values = sp.eigsh(H, 2 * top, "BE", tol=RESIDUAL, show_progress=False).values
    return np.concatenate([values[:1], values[top:]])


def _double_backward(
    torch: Any, module: Any, loss: Any, x: Any, y: Any, top: int, theta: Any
) -> NDArray[Any]:
    """As PyTorch's users have it: the gradient's graph kept, and SciPy's eigsh around it."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    names, shapes = zip(*((n, p.shape) for n, p in module.named_parameters()), strict=True)
    sizes = [s.numel() for s in shapes]
    leaves = [
        part.reshape(s).detach().requires_grad_()
        for part, s in zip(theta.split(sizes), shapes, strict=True)
    ]
    attention = torch.nn.attention
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        state = dict(zip(names, leaves, strict=True))
        value = loss(torch.func.functional_call(module, state, (x,)), y)
        gradient = torch.autograd.grad(value, leaves, create_graph=True)

    def product(v: NDArray[Any]) -> NDArray[Any]:
        along = torch.from_numpy(np.asarray(v, np.float32).reshape(-1)).to(theta.device)
        parts = [a.reshape(s) for a, s in zip(along.split(sizes), shapes, strict=True)]
        found = torch.autograd.grad(gradient, leaves, parts, retain_graph=True)
        result: NDArray[Any] = torch.cat([f.reshape(-1) for f in found]).cpu().numpy()
        return result

    n = theta.numel()
    H = LinearOperator((n, n), matvec=product, dtype=np.float32)
    if top == 1:
        return np.sort(eigsh(H, 2, which="BE", tol=RESIDUAL, return_eigenvectors=False))
    low = eigsh(H, 1, which="SA", tol=RESIDUAL, return_eigenvectors=False)
    high = eigsh(H, top, which="LA", tol=RESIDUAL, return_eigenvectors=False)
    return np.concatenate([low, np.sort(high)])
