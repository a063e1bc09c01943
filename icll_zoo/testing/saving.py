"""A trained model goes to a folder and comes back as it was, and nothing else comes back in its place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import files, tensors
from icll_zoo.errors import InputError
from icll_zoo.rebuild import skeleton
from icll_zoo.testing.kit import CheckFailed, require
from icll_zoo.testing.subject import (
    VOCABULARY,
    Model,
    check,
    identical,
    next_token_loss,
    off,
    read,
    same_tensors,
    some_tokens,
)
from icll_zoo.weights import CONFIG, MODEL, load_model, save_model


def trained(model: Model) -> nn.Module:
    """A model after two updates, so that it is no longer as its constructor made it."""
    net = model.build(seed=7)
    parameters = list(net.parameters())
    if parameters:
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for step in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(next_token_loss(net.train(), some_tokens(8, 34, seed=step)))
            optimizer.step()
    return net.eval()


def saved(model: Model, net: nn.Module, folder: Path) -> None:
    """Write the model. CheckFailed if that is refused."""
    try:
        torch.manual_seed(0)
        save_model(net, folder, zoo=model.zoo)
    except Exception as error:
        raise CheckFailed(f"it cannot be saved: {type(error).__name__}: {error}") from error


def loaded(model: Model, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    return load_model(f"local-dir:{folder}", zoo=model.zoo)


@check
def check_survives_save_and_load(model: Model) -> None:
    """Saved after training and loaded again it gives the same output, bit for bit; tied weights are still tied."""
    net = trained(model)
    tokens = some_tokens(3, 47)
    wanted, ties = read(net, tokens), tensors.stored_tensors(net)[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        saved(model, net, folder)
        try:
            back = loaded(model, folder)
        except Exception as error:
            raise CheckFailed(f"it is not loaded as it was saved: {type(error).__name__}: {error}") from error
    odd = same_tensors(back.state_dict(), net.state_dict())
    require(odd is None, f"tensor {odd!r} is not as it was saved")
    require(tensors.stored_tensors(back)[1] == ties, "loading unties weights that were tied")
    found = read(back, tokens)
    require(identical(found, wanted), f"its output changes by {off(found, wanted):.3g} of the largest")


@check
def check_builds_on_meta(model: Model) -> None:
    """Built without memory, on the meta device, it has the same tensors, and with them gives the same output.

    What is neither a parameter nor a buffer stays behind there, as it stays behind in `model.to(device)`.
    """
    net = trained(model)
    empty = skeleton(model.zoo, model.spec, VOCABULARY).eval()
    found, ties = tensors.stored_tensors(empty)
    wanted, own_ties = tensors.stored_tensors(net)
    sizes = {name: shape for name, shape in tensors.shapes(wanted).items() if found.get(name) is None}
    require(not sizes, f"built on the meta device it lacks {sorted(sizes)[:1]}")
    for name, shape in tensors.shapes(found).items():
        require(name in wanted, f"built on the meta device it has {name!r} too")
        require(shape == tensors.Shape.of(wanted[name]), f"built on the meta device {name!r} is {shape}")
    require(ties == own_ties, "built on the meta device it ties other weights")
    tokens = some_tokens(3, 47)
    filled = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            output: Tensor = torch.func.functional_call(empty, filled, (tokens,))
    except Exception as error:
        raise CheckFailed(
            f"built on the meta device and filled it cannot run ({type(error).__name__}: {error}): every tensor that "
            "it keeps must be a parameter or a buffer"
        ) from error
    require(identical(output, read(net, tokens)), "built on the meta device and filled it gives another output")


@check
def check_strict_load(model: Model) -> None:
    """With one tensor more, one less, or one under another name, loading refuses, from a folder and into a module."""
    net = model.trainable()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        saved(model, net, folder)
        stored, ties = tensors.stored_tensors(net)
        for what, change in CHANGES.items():
            changed = change(dict(stored))
            rewrite(folder, changed, ties)
            try:
                loaded(model, folder)
            except InputError:
                pass
            else:
                raise CheckFailed(f"a folder with {what} is loaded")
    # Each of the mixers' own tensors: the loading of one module may be lenient where the others are not.
    complete = net.state_dict()
    for name in complete:
        left = {key: value for key, value in complete.items() if key != name}
        require(refuses(net, left), f"load_state_dict takes a state without {name!r}")
    require(refuses(net, {**complete, "icll_zoo_extra": torch.zeros(1)}), "load_state_dict takes an extra tensor")


def refuses(net: nn.Module, state: dict[str, Tensor]) -> bool:
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError:
        return True
    return False


def without_last(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    del stored[max(stored)]
    return stored


def renamed_last(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    last = max(stored)
    stored[f"{last}_of_old"] = stored.pop(last)
    return stored


CHANGES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a tensor too many": lambda stored: {**stored, "icll_zoo_extra": torch.zeros(1)},
    "a tensor missing": without_last,
    "a tensor renamed": renamed_last,
}


def rewrite(folder: Path, stored: dict[str, Tensor], ties: dict[str, str]) -> None:
    """Put other tensors into a saved folder, whose config.json then vouches for them."""
    path = folder / MODEL
    path.unlink()
    tensors.write_tensors(path, stored, {"tied": ties})
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    config["files"][MODEL] = {"sha256": files.sha256_of(path), "bytes": path.stat().st_size}
    (folder / CONFIG).write_text(json.dumps(config))
