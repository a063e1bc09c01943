"""The language model around any stack of mixers.

    x = dropout([norm](embed(tokens) [+ positions]))
    per block:  x = x + mixer(norm(x));  x = x + mlp(norm(x))
    logits = head(norm(x)),  the head tied to the embedding unless `tie` is off

Pre-norm, as in section 5 of the paper's reference (`lm_simple`). The backbone initialises its own parts only: every
mixer keeps the initialisation that it gave itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo.errors import InputError
from icll_zoo.tracing import Replace, trace

State = dict[str, Tensor]


@dataclass(frozen=True)
class BackboneOptions:
    """The backbone's options and their defaults.

    n_layers: blocks of the named mixer; `layers` instead lists them one by one, as mixer names or as
        {"mixer": name, "mlp_ratio": ..., and the mixer's own options}.
    positions: "learned" adds a table of `max_length` rows to the embeddings.
    norm_eps: what norms add to the variance; None is 1e-5 for "layernorm" and 1e-6 for "rmsnorm".
    embedding_norm: a norm of the same kind before the first block, as RWKV-4 has it.
    mlp: "gelu" (tanh form, biases), "swiglu" (no biases), "rwkv" (channel mixing with token shift) or "none".
    mlp_ratio: the MLP's width over d_model.
    residual: off, each part replaces the stream instead of adding to it.
    dropout: on the embeddings; the residual stream has none, as in the paper's reference.
    init_std: of the embeddings' normal initialisation.
    """

    d_model: int = 128
    n_layers: int = 4
    layers: list[str | dict[str, Any]] | None = None
    positions: Literal["none", "learned"] = "none"
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    norm_eps: float | None = None
    embedding_norm: bool = False
    mlp: Literal["gelu", "swiglu", "rwkv", "none"] = "gelu"
    mlp_ratio: float = 4.0
    residual: bool = True
    dropout: float = 0.1
    tie: bool = True
    max_length: int = 1024
    init_std: float = 0.02


INJECTED = ("d_model", "n_layers", "layer_index", "vocab_size", "max_length")
"""What the backbone hands to a mixer's constructor if it names it."""


def takes_tokens(mixer: nn.Module) -> bool:
    """Whether the mixer's forward asks for the token ids beside the stream."""
    return "tokens" in inspect.signature(mixer.forward).parameters


class Mlp(nn.Module):
    """The position-wise part of a block, (b, l, d_model) -> same.

    "rwkv" is the channel mixing of RWKV-4 (arXiv:2305.13048, equations 12-14): it also looks one token back, so it
    has a state of one vector.
    """

    def __init__(self, kind: Literal["gelu", "swiglu", "rwkv"], d_model: int, ratio: float, n_layers: int) -> None:
        super().__init__()
        self.kind = kind
        width = max(1, round(ratio * d_model))
        bias = kind == "gelu"
        self.up = nn.Linear(d_model, width, bias=bias)
        self.down = nn.Linear(width, d_model, bias=bias)
        if kind == "swiglu":
            self.gate = nn.Linear(d_model, width, bias=False)
        if kind == "rwkv":
            self.gate = nn.Linear(d_model, d_model, bias=False)
            self.mix_up = nn.Parameter(torch.full((d_model,), 0.5))
            self.mix_gate = nn.Parameter(torch.full((d_model,), 0.5))
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        # GPT-2's rule, kept by the reference: 2 n_layers parts add to the stream, so each starts that much smaller.
        nn.init.normal_(self.down.weight, std=0.02 / math.sqrt(2 * n_layers))

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """`before` (b, d_model): the input of the token before x[:, 0]; zeros at the start. Only "rwkv" reads it."""
        if self.kind == "gelu":
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        if self.kind == "swiglu":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        first = x.new_zeros(x.size(0), 1, x.size(2)) if before is None else before[:, None]
        shifted = torch.cat([first, x[:, :-1]], 1)
        up = self.up(torch.lerp(shifted, x, self.mix_up))
        gate = self.gate(torch.lerp(shifted, x, self.mix_gate))
        return torch.sigmoid(gate) * self.down(F.relu(up).square())


class Block(nn.Module):
    """One mixer and its MLP, each behind a norm and added to the stream."""

    mixer: Any  # an nn.Module that may have init_state and step

    def __init__(self, mixer: nn.Module, options: BackboneOptions, mlp_ratio: float, n_layers: int) -> None:
        super().__init__()
        d_model = options.d_model
        self.residual = options.residual
        self.norm = make_norm(options, d_model)
        self.mixer = mixer
        self.takes_tokens = takes_tokens(mixer)
        self.mlp_norm: nn.Module | None = None
        self.mlp: Mlp | None = None
        if options.mlp != "none" and mlp_ratio > 0:
            self.mlp_norm = make_norm(options, d_model)
            self.mlp = Mlp(options.mlp, d_model, mlp_ratio, n_layers)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.mixer(h, tokens) if self.takes_tokens else self.mixer(h)
        x = x + h if self.residual else h
        if self.mlp is None or self.mlp_norm is None:
            return x
        h = self.mlp(self.mlp_norm(x))
        return x + h if self.residual else h

    def step(self, x: Tensor, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """As forward, for the next k tokens; `state` holds the mixer's tensors and perhaps `mlp.before`."""
        own = {name.removeprefix("mixer."): t for name, t in state.items() if name.startswith("mixer.")}
        h = self.norm(x)
        h, own = self.mixer.step(h, own, tokens) if self.takes_tokens else self.mixer.step(h, own)
        after = {f"mixer.{name}": tensor for name, tensor in own.items()}
        x = x + h if self.residual else h
        if self.mlp is None or self.mlp_norm is None:
            return x, after
        h = self.mlp_norm(x)
        if "mlp.before" in state:
            after["mlp.before"] = h[:, -1]
        h = self.mlp(h, state.get("mlp.before"))
        return (x + h if self.residual else h), after


def make_norm(options: BackboneOptions, d_model: int) -> nn.Module:
    """A norm over the last dimension; "none" passes through."""
    kind, eps = options.norm, options.norm_eps
    if kind == "none":
        return nn.Identity()
    if kind == "layernorm":
        return nn.LayerNorm(d_model, eps=1e-5 if eps is None else eps)
    return nn.RMSNorm(d_model, eps=1e-6 if eps is None else eps)


class Backbone(nn.Module):
    """A causal language model: token ids (b, l) -> logits (b, l, vocab_size).

    mixers: one module a block, each (b, l, d_model) -> same, forward(x) or forward(x, tokens).
    mlp_ratios: the MLP's width over d_model, one a block.
    """

    output = "logits"

    def __init__(
        self,
        mixers: Sequence[nn.Module],
        mlp_ratios: Sequence[float],
        vocab_size: int,
        options: BackboneOptions,
    ) -> None:
        super().__init__()
        self.options = options
        d_model = options.d_model
        self.blocks: Any = nn.ModuleList(
            Block(mixer, options, ratio, len(mixers)) for mixer, ratio in zip(mixers, mlp_ratios, strict=True)
        )
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(options.max_length, d_model) if options.positions == "learned" else None
        self.embedding_norm = make_norm(options, d_model) if options.embedding_norm else None
        self.dropout = nn.Dropout(options.dropout)
        self.norm = make_norm(options, d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=options.init_std)
        nn.init.normal_(self.head.weight, std=options.init_std)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=options.init_std)
        if options.tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            self._check_length(tokens.size(1))
            x = x + self.positions.weight[: tokens.size(1)]
        x = self._enter(x)
        for block in self.blocks:
            x = block(x, tokens)
        return self.head(self.norm(x))

    def no_weight_decay(self) -> set[str]:
        """The parameters that never decay, by name: those that a mixer names in a method of this name."""
        return {
            f"blocks.{index}.mixer.{name}"
            for index, block in enumerate(self.blocks)
            for name in getattr(block.mixer, "no_weight_decay", set)()
        }

    def trace(
        self, tokens: Tensor, *patterns: str, detach: bool = True, replace: Replace | None = None
    ) -> dict[str, Any]:
        """What the parts that match some patterns give for tokens (b, l): {name: tensor}; see `icll_zoo.trace`.

        "dropout" is the stream that enters the first block and "blocks.*" what leaves each, (b, l, d_model) all;
        "blocks.*.mixer" and "blocks.*.mlp" are what is added to it.
        """
        return trace(self, tokens, *patterns, detach=detach, replace=replace)

    @property
    def has_step(self) -> bool:
        """Whether every mixer can go on from a state."""
        return all(
            callable(getattr(block.mixer, "step", None)) and callable(getattr(block.mixer, "init_state", None))
            for block in self.blocks
        )

    @property
    def state_grows(self) -> bool:
        """Whether the state grows with the number of tokens read (a cache), as some mixer says of its own."""
        return any(getattr(block.mixer, "state_grows", False) for block in self.blocks)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token: tensors by dotted name, batch first."""
        device = device if device is not None else self.embedding.weight.device
        dtype = dtype if dtype is not None else self.embedding.weight.dtype
        state: State = {}
        for index, block in enumerate(self.blocks):
            for name, tensor in block.mixer.init_state(batch_size, device, dtype).items():
                state[f"blocks.{index}.mixer.{name}"] = tensor
            if block.mlp is not None and block.mlp.kind == "rwkv":
                before = torch.zeros(batch_size, self.options.d_model, device=device, dtype=dtype)
                state[f"blocks.{index}.mlp.before"] = before
        if self.positions is not None:
            state["position"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The logits (b, k, vocab_size) of the next k tokens (b, k), and the state after them."""
        x = self.embedding(tokens)
        after: State = {}
        if self.positions is not None:
            start = state["position"]
            self._check_length(int(start.max()) + tokens.size(1))
            x = x + self.positions(start[:, None] + torch.arange(tokens.size(1), device=tokens.device))
            after["position"] = start + tokens.size(1)
        x = self._enter(x)
        for index, block in enumerate(self.blocks):
            prefix = f"blocks.{index}."
            own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            x, own = block.step(x, tokens, own)
            after |= {prefix + name: tensor for name, tensor in own.items()}
        return self.head(self.norm(x)), after

    def _enter(self, x: Tensor) -> Tensor:
        return self.dropout(x if self.embedding_norm is None else self.embedding_norm(x))

    def _check_length(self, length: int) -> None:
        if length > self.options.max_length:
            raise InputError(
                f"a sequence of {length} tokens in a model with {self.options.max_length} learned positions",
                hint=f"set model.max_length={length} or more when it is created",
            )
