#!/usr/bin/env bash
# torch 2.13.0: a model is cast to bfloat16 after its optimizer has stepped. SGD with momentum and Adagrad
# go on, with float32 states beside bfloat16 parameters; Adam and AdamW raise from within the step, on the
# dtype of an argument named `end`, and a parameter that comes before has not been stepped either. Which
# optimizer minds is nowhere in the documentation.
# Fails if a newer behaviour replaces this one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn, optim

def after_cast(name, **given):
    layer = nn.Linear(3, 2)
    optimizer = getattr(optim, name)(layer.parameters(), lr=0.1, **given)
    for dtype in (torch.float32, torch.bfloat16):
        layer.to(dtype)
        optimizer.zero_grad()
        layer(torch.ones(1, 3, dtype=dtype)).sum().backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error)
    return "goes on"

seen = {
    "SGD": after_cast("SGD", momentum=0.9),
    "Adagrad": after_cast("Adagrad"),
    "Adam": after_cast("Adam"),
    "AdamW": after_cast("AdamW"),
}
for name, what in seen.items():
    print(f"{name}: {what}")
assert seen["SGD"] == seen["Adagrad"] == "goes on"
assert "`end`" in seen["Adam"] and "`end`" in seen["AdamW"]
PY
