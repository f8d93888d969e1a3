#!/usr/bin/env bash
# torch 2.13.0, CPU: torch.func.functional_call does not put back the parameters of a layer that a model
# holds at two places (shared layers, as in ALBERT). The call itself is right; afterwards the layer's
# weight is the plain tensor that was passed in, no Parameter any more, and the model computes something
# else. Tied weights of two different layers are put back. named_parameters() has the layer once, tying
# expands it to both names, and the second exchange takes what the first one put in for the original.
# Known as pytorch#164759. Fails if a newer behaviour replaces this one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn

def call_with_zeros(model):
    others = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    torch.func.functional_call(model, others, (torch.ones(1, 3),))

layer = nn.Linear(3, 3)
shared = nn.Sequential(layer, nn.Tanh(), layer)
weight, before = layer.weight, shared(torch.ones(1, 3))
call_with_zeros(shared)
after = shared(torch.ones(1, 3))
print("put back:", layer.weight is weight, "| kind:", type(layer.weight).__name__,
      "| output before", before.abs().max().item() > 0, "and after", after.abs().max().item())
assert layer.weight is not weight and not isinstance(layer.weight, nn.Parameter)
assert before.any() and not after.any()

tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
tied[2].weight = weight = tied[0].weight
call_with_zeros(tied)
assert tied[0].weight is weight and tied[2].weight is weight
PY
