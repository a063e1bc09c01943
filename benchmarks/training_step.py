"""A training step (forward, backward, AdamW) of the zoo's models against the same models elsewhere; one CPU thread.

    python benchmarks/training_step.py [--rows 9,10,11] [--pairs 7] [--json]

Rows 9 and 11: models of transformers, imported with their weights, so that both sides are the same function; their
logits have to agree first. Row 10: the same mixers with all pairs of positions, (batch, heads, length, length) scores,
as the parallel forms in their papers stand; that is leaner than any published code. bf16 is autocast on the zoo's side
alone, against float32 on the other. transformers' Mamba goes token by token on a CPU and is measured on fewer tokens,
and with two layers; ratios are per token.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import Ratio, compare, report
from torch import Tensor, nn
from torch.nn import functional as F

import icll_zoo as zoo

VOCAB, LENGTH, BATCH, D_MODEL, LAYERS = 20, 512, 32, 128, 8
AGREE = 1e-4  # of the largest logit, float32


def batch(size: int, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (size, length + 1), generator=torch.Generator().manual_seed(0))


def stepper(model: nn.Module, tokens: Tensor, bf16: bool = False) -> Callable[[], None]:
    """One update on the same batch again and again."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = logits_of(model, tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    made = model(tokens)
    return made if isinstance(made, Tensor) else made.logits


@torch.no_grad()
def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of logits, over the largest."""
    tokens = batch(2, 130)[:, :-1]
    a.eval(), b.eval()
    ours, theirs = logits_of(a, tokens), logits_of(b, tokens)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def of_transformers(name: str, layers: int, **options: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=layers, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **options,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config)


def all_pairs(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Linear attention with one decay a head, from the (b, h, l, l) matrix of scores; q (b, l, h, d), no state."""
    length = q.size(1)
    scores = torch.einsum("bthd,bshd->bhts", q, k)
    mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if log_decay is None:
        scores = scores.masked_fill(~mask, 0)
    else:
        steps = log_decay.expand(-1, length, -1, -1)[0, :, :, 0].T.cumsum(1)  # (h, l)
        weight = (steps[:, :, None] - steps[:, None]).masked_fill(~mask, -torch.inf).exp()
        scores = scores * weight.to(scores.dtype)
    return torch.einsum("bhts,bshd->bthd", scores, v), None


def sides(ours: nn.Module, theirs: nn.Module, label: str, facts: dict[str, Any]) -> None:
    found = apart(ours, theirs)
    facts[f"{label}: largest difference of logits, over the largest"] = f"{found:.1e}"
    if not found <= AGREE:
        sys.exit(f"{label}: the two sides differ by {found:.1e} of the largest logit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="9,10,11")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = given.rows.split(",")
    torch.set_num_threads(1)
    rows: dict[str, Ratio] = {}
    facts: dict[str, Any] = {}

    def add(
        label: str, ours: nn.Module, theirs: nn.Module, targets: tuple[float, float | None], size: int, small: int
    ) -> None:
        """Float32 on both sides, then bf16 on ours. size, small: the sequences of our and of their batch."""
        sides(ours, theirs, label, facts)
        kinds = ["float32", "bf16"] if targets[1] is not None else ["float32"]
        slow = stepper(theirs, batch(small))
        for kind, target in zip(kinds, targets, strict=False):
            fast = stepper(copy.deepcopy(ours), batch(size), kind == "bf16")
            ratio = compare(fast, slow, given.pairs, target=target, work=size / small)
            rows[f"{label}, {kind}"] = ratio
            speeds = size * LENGTH / ratio.fast_s, small * LENGTH / ratio.slow_s
            facts[f"{label}, {kind}: tokens/s"] = f"{speeds[0]:.0f} to {speeds[1]:.0f}"

    from icll_zoo_transformers import from_transformers

    if "9" in chosen:
        peer = of_transformers("Llama", LAYERS, intermediate_size=344, num_attention_heads=2, num_key_value_heads=2)
        add("9 Transformer, 8 layers", from_transformers(peer), peer, (1.15, 2), BATCH, BATCH)
    if "10" in chosen:
        for name in ("linear-transformer", "retnet"):
            torch.manual_seed(0)
            ours = zoo.create_model(name, vocab_size=VOCAB, d_model=D_MODEL, n_layers=LAYERS, dropout=0.0, n_heads=2)
            theirs = copy.deepcopy(ours)
            for block in theirs.blocks:
                block.mixer.op = all_pairs
            add(f"10 {name}, 8 layers", ours, theirs, (2, 5), BATCH, BATCH)
    if "11" in chosen:
        for label, name, layers, options, target, small in (
            ("Mamba, 2 layers", "Mamba", 2, {}, 50, 1),
            ("Mamba-2, 8 layers", "Mamba2", 8, {"num_heads": 4, "head_dim": 64, "n_groups": 1}, 3, BATCH // 4),
            ("RWKV-4, 8 layers", "Rwkv", 8, {"intermediate_size": 512, "rescale_every": 0}, 3, BATCH // 4),
        ):
            peer = of_transformers(name, layers, **options)
            add(f"11 {label}", from_transformers(peer), peer, (target, None), BATCH // 4, small)
    report(rows, facts)


if __name__ == "__main__":
    main()
