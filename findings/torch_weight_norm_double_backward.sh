#!/usr/bin/env bash
# torch 2.13.0, CPU: double backward through weight normalization is silently wrong. The backward of
# torch._weight_norm, which torch.nn.utils.parametrizations.weight_norm calls, takes the norms that the
# forward pass saved for constants, so the second derivative by the direction v lacks their part: here it
# is more than its own length off central differences, to which the formula written out agrees; gradgradcheck
# says so too. Gradients are right. Every Hessian of a weight-normalized network is affected, and every
# gradient penalty. Fails if a newer behaviour replaces this one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn.utils.parametrizations import weight_norm

torch.manual_seed(0)
layer = weight_norm(torch.nn.Linear(4, 5, bias=False)).double()
g, v = (p.detach() for p in layer.parameters())  # the lengths, and the directions
x, along = torch.randn(8, 4).double(), torch.randn(5, 4).double()

def theirs(v):
    return torch.func.functional_call(layer, {"parametrizations.weight.original1": v}, (x,))

def formula(v):
    return x @ (v * (g / v.norm(dim=1, keepdim=True))).T

def gradient(f, v, create_graph=False):
    leaf = v.detach().requires_grad_()
    loss = f(leaf).pow(3).sum()
    return leaf, torch.autograd.grad(loss, leaf, create_graph=create_graph)[0]

def product(f):
    leaf, slope = gradient(f, v, create_graph=True)
    return torch.autograd.grad(slope, leaf, along)[0]

h = 1e-5
quotient = (gradient(theirs, v + h * along)[1] - gradient(theirs, v - h * along)[1]) / (2 * h)
error = {f.__name__: float((product(f) - quotient).norm() / quotient.norm()) for f in (theirs, formula)}
print({name: f"{e:.1e}" for name, e in error.items()})
assert torch.allclose(gradient(theirs, v)[1], gradient(formula, v)[1])
assert error["theirs"] > 0.05 and error["formula"] < 1e-6
leaves = (v.clone().requires_grad_(), g.clone().requires_grad_())
assert not torch.autograd.gradgradcheck(torch._weight_norm, leaves, raise_exception=False)
PY
