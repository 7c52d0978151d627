#!/usr/bin/env python3
"""Makes optimizers.json: a few steps of the optimizers of PyTorch, optax, timm and pytorch-optimizer in float64, for golden_test.cc.

Needs torch, optax, timm and pytorch-optimizer (the Python index). Options are those of tests/optim/textbook.cc, row by row; vectors are neither
decayed nor adapted unless the row says so.
"""
import json
import pathlib
import sys
from importlib import metadata
from unittest import mock

import jax
import jax.numpy as jnp
import numpy
import optax
import pytorch_optimizer.optimizer.utils.matrix as polar
import timm
import timm.optim.lamb
import timm.optim.lars
import torch
import torch.optim._muon

jax.config.update("jax_enable_x64", True)
RATE, STEPS = 1e-2, 4
SCHEDULE = 0.5  # RATE over the peak rate
SHAPES = {"matrix": (6, 4), "vector": (6,)}


def rounded(x):
    """To float32, so that the program starts from the same numbers."""
    return numpy.asarray(x, dtype=numpy.float32).astype(numpy.float64)


def torch_weights(start, grads, make):
    """Weights after all steps of the optimizer that make(matrix, vector) gives."""
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = make(params["matrix"], params["vector"])
    for step in grads:
        for name, param in params.items():
            param.grad = torch.tensor(step[name])
        optimizer.step()
    return {name: param.detach().numpy().ravel().tolist() for name, param in params.items()}


def optax_weights(start, grads, transform, only=None):
    params = {name: jnp.asarray(value) for name, value in start.items()}
    state = transform.init(params)
    for step in grads:
        updates, state = transform.update({name: jnp.asarray(g) for name, g in step.items()}, state, params)
        params = optax.apply_updates(params, updates)
    return {name: numpy.asarray(value).ravel().tolist() for name, value in params.items() if only is None or name in only}


def torch_muon(start, grads, scale, orthogonalize=torch.optim._muon._zeropower_via_newtonschulz):
    """The matrix by torch.optim.Muon; its iteration, which is in bf16, runs in float64."""
    matrix = torch.nn.Parameter(torch.tensor(start["matrix"]))
    optimizer = torch.optim.Muon([matrix], lr=RATE, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn=scale)
    with mock.patch.object(torch, "bfloat16", torch.float64), mock.patch("torch.optim._muon._zeropower_via_newtonschulz", orthogonalize):
        for step in grads:
            matrix.grad = torch.tensor(step["matrix"])
            optimizer.step()
    return {"matrix": matrix.detach().numpy().ravel().tolist()}


def polar_express(x, *_):
    # Four steps of the package's longer schedule, and the last of five.
    steps = polar.get_newton_schulz_weights("polar_express_safer")[:4] + [(2.3465413258596377, -1.7097828382687081, 0.42323551169305323)]
    return polar.zero_power_via_newton_schulz_5(x, num_steps=5, safety_factor=1.01, weights=steps, dtype=torch.float64)


def adagrad_norm(start, grads):
    """The rate of each step is that of PyTorch's Adagrad on one number whose gradient is the norm of all gradients."""
    weights = {name: value.copy() for name, value in start.items()}
    number = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.Adagrad([number], lr=RATE, initial_accumulator_value=0.01, eps=0.0)
    for step in grads:
        norm = numpy.sqrt(sum((g ** 2).sum() for g in step.values()))
        before = number.item()
        number.grad = torch.tensor(norm)
        optimizer.step()
        for name, g in step.items():
            weights[name] += (number.item() - before) / norm * g
    return {name: value.ravel().tolist() for name, value in weights.items()}


def groups(matrix, vector, decay):
    return [{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}]


def main():
    rng = numpy.random.default_rng(11)
    start = {name: rounded(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    grads = [{name: rounded(rng.normal(size=shape)) for name, shape in SHAPES.items()} for _ in range(STEPS)]
    matrices = {"matrix": True, "vector": False}
    rows = {}

    def by_torch(name, make):
        rows[name] = torch_weights(start, grads, make)

    by_torch("adamw", lambda m, v: torch.optim.AdamW(groups(m, v, 0.1), lr=RATE, betas=(0.9, 0.95), eps=1e-8))
    for nesterov in (False, True):
        by_torch("sgd_nesterov" if nesterov else "sgd",
                 lambda m, v: torch.optim.SGD(groups(m, v, 0.01), lr=RATE, momentum=0.8, nesterov=nesterov))
    by_torch("adagrad", lambda m, v: torch.optim.Adagrad(groups(m, v, 0.01), lr=RATE, initial_accumulator_value=0.1, eps=1e-10))
    lamb = timm.optim.lamb.Lamb
    by_torch("lamb_apex", lambda m, v: lamb(groups(m, v, 0.01), lr=RATE, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=1.0))
    by_torch("lamb_nvlamb", lambda m, v: lamb(groups(m, v, 0.01), lr=RATE, eps=1e-6, max_grad_norm=1.0, always_adapt=True))
    by_torch("lamb_lambc", lambda m, v: lamb(groups(m, v, 0.01), lr=RATE, eps=1e-6, max_grad_norm=1.0, trust_clip=True))
    by_torch("lamb_tfa", lambda m, v: lamb(groups(m, v, 0.01), lr=RATE, eps=1e-6, max_grad_norm=None))
    by_torch("lamb_no_bias_correction",
             lambda m, v: lamb(groups(m, v, 0.01), lr=RATE, eps=1e-6, max_grad_norm=None, bias_correction=False))
    by_torch("lars_original", lambda m, v: timm.optim.lars.Lars(groups(m, v, 0.01), lr=RATE, momentum=0.9, trust_coeff=0.02, eps=0.0))
    rows["lamb_optax"] = optax_weights(start, grads, optax.lamb(RATE, weight_decay=0.01, mask=matrices))
    for name, nesterov in (("lars_optax", False), ("lars_optax_nesterov", True)):
        rows[name] = optax_weights(start, grads, optax.lars(
            RATE, weight_decay=0.01, weight_decay_mask=matrices, trust_coefficient=0.02, trust_ratio_mask=matrices, momentum=0.9,
            nesterov=nesterov))
    rows["adamw_independent"] = optax_weights(start, grads, optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8), optax.scale(-RATE), optax.add_decayed_weights(-SCHEDULE * 0.1, mask=matrices)))
    rows["adagrad_norm"] = adagrad_norm(start, grads)
    rows["muon"] = torch_muon(start, grads, "original")
    rows["muon_moonlight"] = torch_muon(start, grads, "match_rms_adamw")
    rows["muon_polar_express"] = torch_muon(start, grads, "spectral_unclamped", polar_express)
    # optax's matrices are [in, out]; its Nesterov form corrects the two terms' bias apart, which Keller's does not.
    turned = lambda tensors: {name: value.T if name == "matrix" else value for name, value in tensors.items()}
    muon = optax_weights(turned(start), [turned(step) for step in grads], optax.contrib.muon(
        RATE, beta=0.95, nesterov=False, weight_decay=0.1, eps=1e-7), only=("matrix",))
    rows["muon_plain"] = {"matrix": numpy.asarray(muon["matrix"]).reshape(4, 6).T.ravel().tolist()}

    out = {"made_by": {"torch": torch.__version__, "optax": optax.__version__, "timm": timm.__version__,
                       "pytorch-optimizer": metadata.version("pytorch-optimizer")}, "rate": RATE,
           "tensors": [{"name": name, "shape": list(shape), "start": start[name].ravel().tolist()} for name, shape in SHAPES.items()],
           "grads": [[step[name].ravel().tolist() for name in SHAPES] for step in grads], "weights": rows}
    path = pathlib.Path(__file__).with_name("optimizers.json")
    path.write_text(json.dumps(out, indent=0).replace("\n", " ").replace('"weights"', '\n"weights"') + "\n")
    print(path, path.stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
