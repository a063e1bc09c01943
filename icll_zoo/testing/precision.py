"""Numbers: float64 all the way through, bfloat16 under autocast, gradients that are the output's derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo.testing.kit import CheckFailed, require
from icll_zoo.testing.subject import Model, check, next_token_loss, read, some_tokens

# A smooth function moves by its second derivative times 1e-14 here, a sum rounded to float32 by 1e-9 or more.
SMALL_STEP, ROUGH = 1e-7, 1e-10
# The long step drowns what float32 inside would add, the short one follows a phase that turns quickly; a wrong gradient
# agrees with neither.
STEPS, TOLERANCE = (1e-3, 1e-5), 1e-3
# bfloat16 has 8 bits, so an operation is off by 0.4 %; a wrong formula is off by much more than a tenth.
COARSE = 0.1


@check
def check_works_in_float64(model: Model) -> None:
    """In float64 the output is float64, and so is everything on the way: it moves smoothly when the weights move.

    f(w + d) + f(w - d) - 2 f(w) is 1e-14 for a d of 1e-7, unless something was rounded to fewer digits.
    """
    net = model.trainable(dtype=torch.float64)
    tokens = some_tokens(2, 33)
    try:
        middle = read(net, tokens)
    except Exception as error:
        raise CheckFailed(f"it cannot be run in float64: {type(error).__name__}: {error}") from error
    require(middle.dtype == torch.float64, f"its output is {middle.dtype} although its parameters are float64")
    generator = torch.Generator().manual_seed(2)
    moved = []
    starts = [p.detach().clone() for p in net.parameters()]
    moves = [direction(p, generator) for p in starts]
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, start, move in zip(net.parameters(), starts, moves, strict=True):
                parameter.copy_(start + sign * SMALL_STEP * move)
        moved.append(read(net, tokens))
    gap = (moved[0] + moved[1] - 2 * middle).abs() / middle.abs().max()
    # The median: a kink may lie between the two points for one unit or another, but not for half of the outputs.
    rough = gap.median().item()
    require(rough <= ROUGH, f"somewhere it computes in fewer digits: the output is rough by {rough:.3g} of the largest")


def direction(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random, as large as the parameter is; 0.1 where it is zero."""
    size = parameter.abs().mean() if parameter.numel() and bool(parameter.any()) else torch.tensor(0.1)
    return torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * size


@check
def check_works_in_bfloat16(model: Model) -> None:
    """Under autocast to bfloat16, as `train.precision=bf16` runs it: near the float32 output, and finite gradients."""
    net = model.trainable(dropout=0.0)
    tokens = some_tokens(4, 66)
    wanted = read(net, tokens[:, :-1])
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = read(net, tokens[:, :-1]).float()
            loss = next_token_loss(net, tokens)
        torch.autograd.backward(loss)
    except Exception as error:
        raise CheckFailed(f"it cannot be run under autocast: {type(error).__name__}: {error}") from error
    require(bool(found.isfinite().all()), "under autocast its output is not finite")
    worst = ((found - wanted).norm() / wanted.norm()).item()
    require(worst <= COARSE, f"under autocast its output is off by {worst:.1%}")
    bad = [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    require(not bad, f"under autocast the gradient of {bad[:1]} is not finite")


@check
def check_gradients_match_differences(model: Model) -> None:
    """For every parameter: the gradient along a direction is the quotient of differences along it, in float64."""
    net = model.trainable(dtype=torch.float64)
    tokens = some_tokens(2, 41)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return next_token_loss(net, tokens)

    torch.autograd.backward(loss())
    generator = torch.Generator().manual_seed(2)
    parameters = dict(net.named_parameters())
    moves = {name: direction(p.detach(), generator) for name, p in parameters.items()}
    said = {name: (p.grad * moves[name]).sum().item() for name, p in parameters.items() if p.grad is not None}
    require(bool(said), "no parameter has a gradient")
    # A slope that is nothing beside the others is known to no better than they are.
    floor = max(map(abs, said.values()))

    def measured(name: str, step: float) -> float:
        parameter, start = parameters[name], parameters[name].clone()
        above = (parameter.copy_(start + step * moves[name]), loss().item())[1]
        below = (parameter.copy_(start - step * moves[name]), loss().item())[1]
        parameter.copy_(start)
        return (above - below) / (2 * step)

    with torch.no_grad():
        for name, slope in said.items():
            found = [measured(name, STEPS[0])]
            if not near(slope, found[0], floor):
                found.append(measured(name, STEPS[1]))
            if not near(slope, found[-1], floor):
                raise CheckFailed(f"the gradient of {name!r} says {slope:.6g} along a line; measured: {found[-1]:.6g}")


def near(said: float, measured: float, floor: float) -> bool:
    return abs(said - measured) <= TOLERANCE * max(abs(said), abs(measured), floor)
