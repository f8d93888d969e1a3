#!/usr/bin/env bash
# torch 2.13.0, CPU: batch_norm in evaluation with an infinite weight is NaN at every element in eager
# mode, where the formula, and the same function under torch.compile, have the infinity of each element's
# sign: eager mode folds mean, weight and bias to one slope and one offset first, which are inf and -inf.
# Fails if a newer behaviour replaces this one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
TORCHINDUCTOR_CACHE_DIR=$folder/cache "$folder/venv/bin/python" - <<'PY'
import math
import torch
from torch.nn.functional import batch_norm

x = torch.tensor([[1.0], [3.0], [8.0]])
mean, variance, bias = torch.tensor([2.0]), torch.ones(1), torch.zeros(1)
weight = torch.tensor([math.inf])

def normalized(x):
    return batch_norm(x, mean, variance, weight, bias, training=False)

eager = normalized(x).flatten().tolist()
compiled = torch.compile(normalized)(x).flatten().tolist()
formula = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).flatten().tolist()
print("eager", eager, "compiled", compiled, "formula", formula)
assert all(map(math.isnan, eager))
assert compiled == formula == [-math.inf, math.inf, math.inf]
PY
