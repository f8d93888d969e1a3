#!/usr/bin/env bash
# torch 2.13.0: batch_norm in training refuses eps of 0 and below, by a comparison that NaN passes: the
# call succeeds and the output is NaN everywhere. An eps of 0 is refused in training and taken in
# evaluation, so the same module raises in one and gives numbers in the other.
# Fails if a newer behaviour replaces this one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import math
import torch
from torch.nn.functional import batch_norm

x = torch.tensor([[1.0], [3.0], [8.0]])

def told(eps, training):
    running = torch.zeros(1), torch.ones(1)
    try:
        y = batch_norm(x, *running, training=training, eps=eps)
    except (RuntimeError, ValueError) as error:
        return "refused"
    return "NaN" if y.isnan().all() else "numbers"

for eps in (1e-5, 0.0, -0.5, math.nan):
    print(f"eps {eps}: training {told(eps, True)}, evaluation {told(eps, False)}")
assert told(0.0, True) == told(-0.5, True) == "refused"
assert told(math.nan, True) == "NaN"
assert told(0.0, False) == "numbers" and told(math.nan, False) == "NaN"
PY
