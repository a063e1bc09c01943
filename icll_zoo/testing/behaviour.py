"""What a model's output may depend on: nothing later, no other row, no padding."""

from __future__ import annotations

import torch

from icll_zoo.testing.kit import CheckFailed, require
from icll_zoo.testing.subject import LENGTH, VOCABULARY, Model, check, off, place_of, read, some_tokens

SHAPES = ((1, 1), (2, 7), (3, 16), (2, 33), (1, 64), (2, 65), (1, 129))
# In float64 even a Fourier transform over the whole length leaves some 1e-15 of what comes later; a leak is not
# smaller than the weights that it goes through.
TOLERANCE = 1e-9


@check
def check_odd_shapes(model: Model) -> None:
    """Any batch and any length from 1 on: output (b, l, v) in the parameters' type, finite; probabilities add up."""
    net = model.build()
    has_parameters = any(True for _ in net.parameters())
    kind = getattr(net, "output", "logits")
    require(kind in ("logits", "probabilities"), f"its output is {kind!r}, neither 'logits' nor 'probabilities'")
    for batch, length in SHAPES:
        given = some_tokens(batch, length)
        try:
            output = read(net, given)
        except Exception as error:
            raise CheckFailed(
                f"it cannot read {length} tokens a row of {batch}: {type(error).__name__}: {error}"
            ) from error
        where = f"for tokens ({batch}, {length}) the output"
        wanted = (batch, length, VOCABULARY.size)
        require(tuple(output.shape) == wanted, f"{where} has shape {tuple(output.shape)}, not {wanted}")
        require(
            output.dtype == torch.float32 if has_parameters else output.is_floating_point(),
            f"{where} is {output.dtype}, and the parameters are float32",
        )
        require(bool(output.isfinite().all()), f"{where} is not finite")
        if kind == "probabilities":
            require(bool((output >= 0).all()), f"{where} has the probability {output.min():.3g}")
            total = output.sum(-1).max().item()
            require(total <= 1 + 1e-5, f"{where} has a row of probabilities with sum {total:.6g}")


@check
def check_is_causal(model: Model) -> None:
    """Whatever comes at or after position t, the output before t is the same."""
    net = model.build(dtype=torch.float64)
    tokens = some_tokens(4, LENGTH)
    wanted = read(net, tokens)
    others = VOCABULARY.size - 1
    for t in (1, 2, 7, 16, 33, 64, LENGTH - 1):
        shift = torch.randint(1, others, (4, LENGTH - t), generator=torch.Generator().manual_seed(t))
        changed = tokens.clone()
        changed[:, t:] = 1 + (tokens[:, t:] - 1 + shift) % others
        found = read(net, changed)
        worst = off(found[:, :t], wanted[:, :t])
        if worst > TOLERANCE:
            place = place_of(found[:, :t], wanted[:, :t])
            raise CheckFailed(
                f"tokens from position {t} on change the output before it, by {worst:.3g} of the largest at {place}"
            )


@check
def check_rows_are_independent(model: Model) -> None:
    """A row's output is the same alone, in company, and in another order."""
    net = model.build(dtype=torch.float64)
    tokens = some_tokens(4, LENGTH)
    wanted = read(net, tokens)
    order = torch.tensor([2, 0, 3, 1])
    worst = off(read(net, tokens[order]), wanted[order])
    require(worst <= TOLERANCE, f"another order of the rows changes their output by {worst:.3g} of the largest")
    for row in range(len(tokens)):
        alone = read(net, tokens[row : row + 1])
        worst = off(alone, wanted[row : row + 1])
        if worst > TOLERANCE:
            raise CheckFailed(
                f"the other rows of a batch change the output of row {row} by {worst:.3g} of the largest, most at "
                f"position {place_of(alone, wanted[row : row + 1]).rpartition(' ')[2]}"
            )


@check
def check_padding_on_the_right(model: Model) -> None:
    """Padding after the end of the rows changes nothing before it."""
    net = model.build(dtype=torch.float64)
    tokens = some_tokens(4, 33)
    wanted = read(net, tokens)
    for pads in (1, 7, 31):
        padded = torch.nn.functional.pad(tokens, (0, pads), value=VOCABULARY.pad_id)
        found = read(net, padded)[:, :33]
        worst = off(found, wanted)
        if worst > TOLERANCE:
            raise CheckFailed(
                f"{pads} pads after the end change the output by {worst:.3g} of the largest, most at "
                f"{place_of(found, wanted)}"
            )
