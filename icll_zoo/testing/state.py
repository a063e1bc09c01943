"""The recurrent form: `init_state` and `step` give what `forward` gives, from a state that is what it says it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from icll_zoo.errors import InputError
from icll_zoo.generation import can_step
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import LENGTH, Model, check, identical, off, place_of, read, same_tensors, some_tokens

TOLERANCE = 1e-8
CHUNKS = ((1, 3, 8), (3,), (8,), (LENGTH - 1, 1), (LENGTH,))


def stepper(model: Model, dtype: torch.dtype = torch.float64) -> Any:
    """The model, if it can step. CheckFailed if a part has one of the two methods and lacks the other."""
    net: Any = model.build(dtype=dtype)
    for part in [block.mixer for block in net.blocks] if hasattr(net, "blocks") else [net]:
        has = {name for name in ("init_state", "step") if callable(getattr(part, name, None))}
        require(len(has) != 1, f"{type(part).__name__} has {''.join(has)} and lacks the other of init_state and step")
    if not can_step(net):
        raise NotApplicable("it has no step, so that generation reads everything again")
    return net


@torch.no_grad()
def read_in_chunks(net: Any, tokens: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The output by steps whose sizes go round in turn."""
    dtype = next((p.dtype for p in net.parameters()), torch.float64)
    state = net.init_state(len(tokens), torch.device("cpu"), dtype)
    outputs: list[Tensor] = []
    start = 0
    while start < tokens.size(1):
        size = sizes[len(outputs) % len(sizes)]
        torch.manual_seed(0)
        output, state = net.step(tokens[:, start : start + size], state)
        outputs.append(output)
        start += size
    return torch.cat(outputs, 1)


def compare(found: Tensor, wanted: Tensor, sizes: tuple[int, ...], what: str) -> None:
    worst = off(found, wanted)
    if worst > TOLERANCE:
        shown = " and ".join(map(str, sizes)) + (" in turn" if len(sizes) > 1 else "")
        raise CheckFailed(
            f"steps of {shown} differ from {what} by {worst:.3g} of the largest, most at {place_of(found, wanted)}"
        )


@check
def check_step_equals_forward(model: Model) -> None:
    """Token by token from the initial state it gives what forward gives, to 1e-8 in float64."""
    net, tokens = stepper(model), some_tokens(3, LENGTH)
    compare(read_in_chunks(net, tokens, (1,)), read(net, tokens), (1,), "forward")


@check
def check_chunks_equal_forward(model: Model) -> None:
    """In chunks of 1, 3, 8 and of nearly everything it gives what forward gives, to 1e-8 in float64.

    Where single steps already differ (see check_step_equals_forward), chunks are compared with those.
    """
    net, tokens = stepper(model), some_tokens(3, LENGTH)
    whole, one_by_one = read(net, tokens), read_in_chunks(net, tokens, (1,))
    single = off(one_by_one, whole) > TOLERANCE
    for sizes in CHUNKS:
        found = read_in_chunks(net, tokens, sizes)
        compare(found, one_by_one if single else whole, sizes, "single steps" if single else "forward")


@check
def check_step_leaves_state(model: Model) -> None:
    """A step changes neither the state that it was given nor anything in the model: again, it answers the same."""
    net = stepper(model)
    tokens = some_tokens(2, 24)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        states = [net.init_state(2, torch.device("cpu"), torch.float64)]
        states.append(net.step(tokens[:, :9], states[0])[1])
        for what, state in zip(("the initial state", "a state"), states, strict=True):
            for size in (1, 3, 8):
                before = {name: tensor.clone() for name, tensor in state.items()}
                given = tokens[:, 9 : 9 + size]
                torch.manual_seed(0)
                first = net.step(given, state)[0]
                odd = same_tensors(state, before)
                require(odd is None, f"a step of {size} changes {odd!r} of {what} that it was given")
                torch.manual_seed(0)
                again = net.step(given, state)[0]
                require(
                    identical(first, again),
                    f"a second step of {size} from {what} differs by {off(again, first):.3g}: it keeps something",
                )
    odd = same_tensors(net.state_dict(), kept)
    require(odd is None, f"a step changes {odd!r} of the model")


@check
def check_state_size_is_measured(model: Model) -> None:
    """The state is tensors, batch first, of the asked type; its size is constant unless `state_grows` says otherwise.

    It grows with the batch and with nothing else, and its bytes are those that are counted after 64 and 512 tokens.
    """
    net = stepper(model)
    dtype = torch.float64
    with torch.no_grad():
        state = net.init_state(3, torch.device("cpu"), dtype)
        after = net.step(some_tokens(3, 5), state)[1]
    for when, found in (("at first", state), ("after a step", after)):
        require(isinstance(found, dict), f"the state {when} is a {type(found).__name__}, not a dictionary")
        for name, tensor in found.items():
            require(isinstance(tensor, Tensor), f"state {name!r} {when} is a {type(tensor).__name__}, not a tensor")
            require(tensor.ndim > 0 and tensor.size(0) == 3, f"state {name!r} {when} is not batch first")
            require(
                tensor.dtype == dtype or not tensor.is_floating_point(),
                f"state {name!r} {when} is {tensor.dtype} where {dtype} was asked for",
            )
    require(set(state) == set(after), f"a step turns the state {sorted(state)} into {sorted(after)}")
    sizes = {}
    for length in (64, 512):
        try:
            sizes[length] = [state_bytes(net, batch, length) for batch in (1, 2)]
        except InputError as error:
            raise NotApplicable(f"it reads no {length} tokens: {error}") from error
        one, two = sizes[length]
        require(two == 2 * one, f"after {length} tokens the state has {one} bytes for one row and {two} for two")
    small, large = sizes[64][0], sizes[512][0]
    said = bool(getattr(net, "state_grows", False))
    if said != (small != large):
        claim = "state_grows = True" if said else "a constant state"
        raise CheckFailed(f"it claims {claim}, and has {small} bytes after 64 tokens and {large} after 512")


@torch.no_grad()
def state_bytes(net: Any, batch: int, length: int) -> int:
    """The bytes of the state after so many tokens, read in two steps."""
    tokens = some_tokens(batch, length)
    state = net.step(tokens[:, :7], net.init_state(batch, torch.device("cpu"), torch.float64))[1]
    state = net.step(tokens[:, 7:], state)[1]
    return sum(t.numel() * t.element_size() for t in state.values())
