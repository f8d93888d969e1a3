"""Modules of many kinds, each with data and a loss, for what is to hold of any module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saddlepoint.torch as st

ROWS = 6


@dataclass(frozen=True)
class Example:
    """How a module and its data are made, in float64, and how its objective is."""

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Any = F.mse_loss
    options: dict[str, Any] = field(default_factory=dict)


def regression(*inputs: int, outputs: tuple[int, ...] = (2,)) -> Callable[[], Any]:
    return lambda: (torch.randn(ROWS, *inputs), torch.randn(ROWS, *outputs))


def labelled(*inputs: int, classes: int = 3) -> Callable[[], Any]:
    return lambda: (torch.randn(ROWS, *inputs), torch.randint(0, classes, (ROWS,)))


def tokens(length: int = 5, words: int = 7, classes: int = 3) -> Callable[[], Any]:
    return lambda: (
        torch.randint(0, words, (ROWS, length)),
        torch.randint(0, classes, (ROWS,)),
    )


def mlp(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2))


def pixels(*layers: Callable[[], nn.Module], channels: int = 4) -> Callable[[], nn.Module]:
    """A convolution, some layers, and a mean over what is left."""
    return lambda: nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        *(layer() for layer in layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    )


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = st.nn.BatchNormAct(st.nn.BatchNorm2d(4), "gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(7, 4, mode="sum", padding_idx=1)
        self.head = nn.Linear(4, 3)

    def forward(self, words: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bags(words, offsets, weights)))


class Shared(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.ModuleList([self.first, nn.Tanh(), self.first])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for layer in self.again:
            x = layer(x)
        return x[:, :2]


class Encoder(nn.Module):
    """A transformer's encoder over tokens, some of them padding."""

    def __init__(self, layers: int = 1, norm_first: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.encoder(self.embedding(words), src_key_padding_mask=words == 0)
        return self.head(x.mean(1))


class Decoder(nn.Module):
    """Next tokens, by causal attention; the embedding is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        mask = nn.Transformer.generate_square_subsequent_mask(
            words.shape[1], device=x.device, dtype=x.dtype
        )
        return self.head(self.layer(x, x, tgt_mask=mask, tgt_is_causal=True)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


class CubeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return g * 3 * x**2


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return CubeFunction.apply(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(3, 2, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.mix(a, b)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.scale = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.mean(h), F.softplus(self.scale(h))


def likelihood(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    mean, scale = output
    return (torch.log(scale) + 0.5 * ((target - mean) / scale) ** 2).mean()


class Answer(dict[str, Tensor]):
    __getattr__ = dict.__getitem__


class ReturnsLoss(nn.Module):
    """As the models of Hugging Face: named inputs, and the loss among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"words": 7}
        self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Answer:
        logits = self.head(torch.tanh(self.embedding(input_ids)).mean(1))
        return Answer(logits=logits, loss=F.cross_entropy(logits, labels))


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


class Codes(nn.Module):
    """Parts that a loss calls by name, with noise that is drawn on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 3), nn.Linear(3, 4)


def reconstruction(model: Codes, batch: Any) -> Tensor:
    x, _ = batch
    code = torch.tanh(model.encode(x))
    return F.mse_loss(model.decode(code + 0.1 * torch.randn_like(code)), x)


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])
        self.scale = nn.ParameterDict({"out": nn.Parameter(torch.ones(()))})
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.sin(x @ weight + self.frozen)
        return self.scale["out"] * x[:, :2]


class Gated(nn.Module):
    """Depthwise convolution, and channels that are weighed by their means."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 4, 1)
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(F.silu(self.depth(x)))
        return y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]


BATCH = {"batch_norm": "batch"}

EXAMPLES: dict[str, Example] = {
    "linear": Example(lambda: nn.Linear(4, 2), regression(4)),
    "tanh": Example(mlp(nn.Tanh()), regression(4)),
    "relu": Example(mlp(nn.ReLU()), regression(4)),
    "gelu": Example(mlp(nn.GELU()), regression(4)),
    "silu": Example(mlp(nn.SiLU()), regression(4)),
    "leaky relu": Example(mlp(nn.LeakyReLU()), regression(4)),
    "softplus": Example(mlp(nn.Softplus()), regression(4), nn.SmoothL1Loss()),
    "prelu": Example(mlp(nn.PReLU()), regression(4), nn.HuberLoss()),
    "glu": Example(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2)), regression(4)
    ),
    "classes": Example(mlp(nn.ELU()), labelled(4, classes=2), F.cross_entropy),
    "smoothed classes": Example(
        mlp(nn.Tanh()), labelled(4, classes=2), nn.CrossEntropyLoss(label_smoothing=0.1)
    ),
    "binary": Example(
        mlp(nn.Tanh()),
        lambda: (torch.randn(ROWS, 4), torch.rand(ROWS, 2)),
        nn.BCEWithLogitsLoss(),
    ),
    "summed": Example(mlp(nn.Tanh()), regression(4), nn.MSELoss(reduction="sum")),
    "convolutions": Example(pixels(nn.Tanh), labelled(2, 5, 5), F.cross_entropy),
    "largest": Example(
        pixels(nn.Tanh, lambda: nn.MaxPool2d(2)), labelled(2, 6, 6), F.cross_entropy
    ),
    "convolution 1d": Example(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
        regression(2, 5),
    ),
    "convolution 3d": Example(
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)),
        regression(1, 3, 3, 3),
    ),
    "transposed": Example(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 2, 3), nn.Tanh(), nn.Upsample(scale_factor=2, mode="bilinear")
        ),
        regression(2, 2, 2, outputs=(2, 8, 8)),
    ),
    "gated": Example(pixels(Gated), labelled(2, 4, 4), F.cross_entropy),
    "residual, frozen": Example(
        pixels(lambda: Residual(nn.BatchNorm2d)), labelled(2, 4, 4), F.cross_entropy
    ),
    "residual, batch": Example(
        pixels(lambda: Residual(nn.BatchNorm2d)), labelled(2, 4, 4), F.cross_entropy, BATCH
    ),
    "batch norm without averages": Example(
        pixels(lambda: nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh),
        labelled(2, 4, 4), F.cross_entropy,
    ),
    "batch norm of all batches": Example(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=None), nn.Tanh()),
        regression(4, outputs=(3,)), F.mse_loss, BATCH,
    ),
    "ours, frozen": Example(
        pixels(lambda: Residual(st.nn.BatchNorm2d)), labelled(2, 4, 4), F.cross_entropy
    ),
    "ours, batch": Example(
        pixels(lambda: Residual(st.nn.BatchNorm2d)), labelled(2, 4, 4), F.cross_entropy, BATCH
    ),
    "ours, fused": Example(pixels(Fused), labelled(2, 4, 4), F.cross_entropy, BATCH),
    "group norm": Example(
        pixels(lambda: Residual(lambda c: nn.GroupNorm(2, c))), labelled(2, 4, 4), F.cross_entropy
    ),
    "instance norm": Example(
        pixels(lambda: nn.InstanceNorm2d(4, affine=True), nn.Tanh),
        labelled(2, 4, 4), F.cross_entropy,
    ),
    "layer norm": Example(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)),
        regression(4),
    ),
    "root mean square norm": Example(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Tanh(), nn.Linear(5, 2)),
        regression(4),
    ),
    "lstm": Example(lambda: Recurrent(nn.LSTM), labelled(4, 3), F.cross_entropy),
    "deep lstm": Example(
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), labelled(3, 3),
        F.cross_entropy,
    ),
    "gru": Example(lambda: Recurrent(nn.GRU), labelled(4, 3), F.cross_entropy),
    "rnn": Example(lambda: Recurrent(nn.RNN), labelled(4, 3), F.cross_entropy),
    "bag of words": Example(
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 3)),
        tokens(), F.cross_entropy,
    ),
    "weighed bags": Example(
        lambda: Bags(),
        lambda: (
            (
                torch.randint(0, 7, (9,)),
                torch.tensor([0, 2, 5, 5, 6, 8]),
                torch.rand(9),
            ),
            torch.randint(0, 3, (ROWS,)),
        ),
        F.cross_entropy,
    ),
    "encoder": Example(Encoder, tokens(), F.cross_entropy),
    "deep encoder": Example(lambda: Encoder(2, norm_first=True), tokens(), F.cross_entropy),
    "decoder": Example(
        Decoder,
        lambda: (torch.randint(0, 7, (ROWS, 4)), torch.randint(0, 7, (ROWS, 4))),
        F.cross_entropy,
    ),
    "attention": Example(Attention, labelled(5, 4), F.cross_entropy),
    "shared": Example(Shared, regression(4)),
    "weight norm": Example(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
        ),
        regression(4),
    ),
    "spectral norm": Example(
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)
        ),
        regression(4),
    ),
    "orthogonal": Example(
        lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh()),
        regression(4, outputs=(4,)),
    ),
    "own function": Example(mlp(Cube()), regression(4)),
    "two inputs": Example(
        TwoInputs, lambda: ((torch.randn(ROWS, 3), torch.randn(ROWS, 2)), torch.randn(ROWS, 2))
    ),
    "named inputs": Example(
        TwoInputs,
        lambda: ({"a": torch.randn(ROWS, 3), "b": torch.randn(ROWS, 2)}, torch.randn(ROWS, 2)),
    ),
    "two outputs": Example(TwoOutputs, regression(4), likelihood),
    "returns its loss": Example(
        ReturnsLoss,
        lambda: {
            "input_ids": torch.randint(0, 7, (ROWS, 4)), "labels": torch.randint(0, 3, (ROWS,))
        },
        own_loss,
    ),
    "parts and noise": Example(Codes, regression(4), reconstruction),
    "lists, unused and frozen": Example(Lists, regression(4)),
    "dropout": Example(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)),
        regression(4), F.mse_loss, {"dropout": "fixed"},
    ),
    "no dropout": Example(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)),
        regression(4),
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Any, Example]:
    """The module and its data, the same every time."""
    example = EXAMPLES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            module, data = example.make().double(), example.data()
            with torch.no_grad():
                for m in module.modules():
                    if isinstance(getattr(m, "running_mean", None), Tensor):
                        m.running_mean.normal_(0.0, 0.1)
                        m.running_var.uniform_(0.5, 1.5)
    finally:
        torch.set_default_dtype(before)
    return module, data, example


def moved(data: Any, device: str) -> Any:
    """The data on a device."""
    if isinstance(data, Tensor):
        return data.to(device)
    if isinstance(data, dict):
        return {key: moved(value, device) for key, value in data.items()}
    return tuple(moved(value, device) for value in data)
