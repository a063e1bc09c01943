"""What the kit consists of: the checks of each kind, by name and by the module that holds them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icll_zoo.registry import Space

_DECLARED = {"import_is_light": "declaration", "signature_is_config": "declaration"}

CHECKS: dict[Space, dict[str, str]] = {
    "model": {
        **_DECLARED,
        "presets_build": "declaration",
        "has_licence_and_paper": "declaration",
        "odd_shapes": "behaviour",
        "works_in_float64": "precision",
        "works_in_bfloat16": "precision",
        "is_causal": "behaviour",
        "rows_are_independent": "behaviour",
        "padding_on_the_right": "behaviour",
        "keeps_its_own_init": "initialisation",
        "seeded": "initialisation",
        "eval_is_deterministic": "initialisation",
        "no_uninitialised_memory": "initialisation",
        "every_parameter_learns": "learning",
        "gradients_match_differences": "precision",
        "checkpointing_is_exact": "learning",
        "learns_a_tiny_language": "learning",
        "survives_save_and_load": "saving",
        "builds_on_meta": "saving",
        "strict_load": "saving",
        "step_equals_forward": "state",
        "chunks_equal_forward": "state",
        "step_leaves_state": "state",
        "state_size_is_measured": "state",
        "fast_equals_reference": "backends",
        "compiles": "backends",
        "gpu_equals_cpu": "backends",
        "fast_equals_reference_on_gpu": "backends",
    },
    "dataset": {
        **_DECLARED,
        "has_licence_and_paper": "declaration",
        "no_network_in_constructor": "datasets",
        "batches_have_the_stated_form": "datasets",
        "batch_is_pure": "datasets",
        "every_sequence_once": "datasets",
        "splits_are_disjoint": "datasets",
        "targets_are_shifted": "datasets",
        "oracle_sums_to_one": "oracles",
        "oracle_is_the_best_scorer": "oracles",
    },
    "metric": {
        **_DECLARED,
        "has_licence": "declaration",
        "states_direction": "metrics",
        "sums_and_counts": "metrics",
        "batch_size_invariant": "metrics",
        "additive": "metrics",
        "padding_invariant": "metrics",
        "direction_is_right": "metrics",
        "known_values": "metrics",
    },
}
"""Every check of the kit, in the order in which they run. A run that has fewer is a failed one."""

SLOW = frozenset({"compiles"})
"""Take minutes: pytest's mark `slow`, `icll-zoo check --slow`."""

GPU = frozenset({"gpu_equals_cpu", "fast_equals_reference_on_gpu"})
"""Need a CUDA device: pytest's mark `gpu`, `icll-zoo check --gpu`."""


class CheckFailed(AssertionError):
    """A check ran and found a fault; the message names what was checked, the check and the evidence."""


class NotApplicable(Exception):
    """A check has nothing to look at here; the message says why."""


def require(condition: bool, evidence: str) -> None:
    """Raise CheckFailed unless the condition holds; the check's own name is put before the evidence (see `check`)."""
    if not condition:
        raise CheckFailed(evidence)
