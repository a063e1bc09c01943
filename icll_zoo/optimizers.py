"""Optimizers and schedules, which are timm's; it is imported when the first one is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from icll_zoo.errors import InputError, did_you_mean

FUSED = ("adam", "adamw", "sgd", "momentum", "nesterov")
"""Those of torch whose whole update can be one kernel."""


def create_optimizer(settings: dict[str, Any], model: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    """timm's optimizer of that name. InputError, with the nearest name, for one that timm does not have.

    What the model names in `no_weight_decay()` never decays, and vectors do only under `decay_all`. fused: make the
    update in one kernel where the optimizer has such a form, equal to rounding.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay

    name = settings["name"]
    known = [str(one) for one in list_optimizers()]
    if name not in known:
        hint = did_you_mean(name, known) or "see timm.optim.list_optimizers()"
        raise InputError(f"unknown optimizer.name {name!r}", hint=hint)
    info = get_optimizer_info(name)
    more: dict[str, Any] = {}
    if info.has_betas and (info.num_betas or 2) == len(settings["betas"]):
        more["betas"] = tuple(settings["betas"])
    if info.has_eps:
        more["eps"] = settings["eps"]
    if fused and name in FUSED:
        more["fused"] = True
    exempt: set[str] = getattr(model, "no_weight_decay", set)()

    def groups(model: nn.Module) -> Any:
        return param_groups_weight_decay(
            model,
            settings["weight_decay"],
            weight_decay_exclude_1d=not settings["decay_all"],
            no_weight_decay_list=exempt,
            # Muon is for the matrices between hidden states; tables and the head get its fallback, AdamW.
            fallback_list=("embedding.weight", "positions.weight", "head.weight") if "muon" in name else (),
        )

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=name, lr=settings["lr"], weight_decay=settings["weight_decay"], param_group_fn=groups, **more
    )
    return optimizer


def create_schedule(settings: dict[str, Any], steps: int, lr: float, optimizer: torch.optim.Optimizer) -> Any:
    """timm's cosine schedule by updates; the constant one is a cosine between equal ends."""
    from timm.scheduler import CosineLRScheduler

    warmup = round(settings["warmup"] * steps)
    lowest = lr * (1.0 if settings["name"] == "constant" else settings["min_lr"])
    return CosineLRScheduler(
        optimizer,
        # At least 2, as timm warns of a cosine of one step; no update is made there.
        t_initial=max(2, steps - warmup if settings["warmup_prefix"] else steps),
        lr_min=lowest,
        warmup_t=warmup,
        warmup_lr_init=settings["warmup_lr"],
        warmup_prefix=settings["warmup_prefix"],
        t_in_epochs=False,
    )
