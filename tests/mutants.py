"""Small wrong mixers, datasets and metrics, each with one fault and the check that must find it, and healthy twins."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from icll_zoo.data import IGNORED, Batch, epoch_indices
from icll_zoo.registry import SCRIPT, entries_of
from icll_zoo.zoo import Zoo

State = dict[str, Tensor]
ABOUT: dict[str, Any] = {"license": "Apache-2.0", "paper": "unpublished"}


# -- mixers ----------------------------------------------------------------------------------------------------------


class Healthy(nn.Module):
    """h_t = 0.9 h_{t-1} + x_t / 4,  y_t = W h_t + b. State: h. All the mutants are this with one change."""

    decay = 0.9

    def __init__(self, d_model: int, gain: float = 1.0, backend: Literal["fast", "reference"] = "fast") -> None:
        super().__init__()
        self.d_model, self.backend = d_model, backend
        self.proj = nn.Linear(d_model, d_model)
        nn.init.orthogonal_(self.proj.weight, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.size(0), self.d_model)
        return self.proj(self.fast(x, zero) if self.backend == "fast" else self.reference(x, zero))

    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        """Through the matrix of the powers of the decay."""
        t = torch.arange(x.size(1), device=x.device)
        powers = (self.decay ** (t[:, None] - t).clamp(min=0).to(x.dtype)).tril()
        return powers @ (x / 4) + self.decay ** (t + 1).to(x.dtype)[:, None] * h[:, None]

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        made = []
        for t in range(x.size(1)):
            h = self.decay * h + x[:, t] / 4
            made.append(h)
        return torch.stack(made, 1)

    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        return {"h": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = self.reference(x, state["h"])
        return self.proj(h), {"h": h[:, -1]}


class WithoutStep(Healthy):
    """Nor do these mutants have a recurrent form, in which their fault would be a second one."""

    init_state = None  # type: ignore[assignment]
    step = None  # type: ignore[assignment]


class LeaksOneToken(WithoutStep):
    """A tenth of the next vector leaks in, with padding masked out as a careful author would."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        following = torch.cat([x[:, 1:] * (tokens[:, 1:, None] != 0), torch.zeros_like(x[:, :1])], 1)
        return super().forward(x + 0.1 * following)


class NormOverTime(WithoutStep):
    """Centred over the whole row, later tokens included, padding masked out."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        real = (tokens != 0)[..., None].to(x.dtype)
        return super().forward(x - 0.5 * (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1))


class NormOverBatch(WithoutStep):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5 * x.mean(0, keepdim=True))


class CountsPadding(WithoutStep):
    """Scaled by the length of the row, padding included."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1 + 4 / x.size(1)))


class NeedsTwoTokens(WithoutStep):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) < 2:
            raise ValueError("a kernel of width 2 does not fit")
        return super().forward(x)


class StepDecaysFaster(Healthy):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return super().step(x, {"h": 0.999 * state["h"]}) if x.size(1) == 1 else self.one_by_one(x, state)

    def one_by_one(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        made = []
        for t in range(x.size(1)):
            y, state = self.step(x[:, t : t + 1], state)
            made.append(y)
        return torch.cat(made, 1), state


class ChunkForgets(Healthy):
    """After more than one token at once the state holds the last of them alone."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, state)
        return y, after if x.size(1) == 1 else {"h": x[:, -1] / 4}


class StepChangesItsState(Healthy):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, state)
        state["h"].copy_(after["h"])
        return y, after


class StepKeepsSomething(Healthy):
    """The state is in the module too: right as long as one sequence is read, wrong for the second reader."""

    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        self.kept: Tensor | None = None
        return super().init_state(batch_size, device, dtype)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, {"h": state["h"] if self.kept is None else self.kept})
        self.kept = after["h"]
        return y, after


class GrowsSecretly(Healthy):
    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        empty = torch.zeros(batch_size, 0, self.d_model, device=device, dtype=dtype)
        return {**super().init_state(batch_size, device, dtype), "seen": empty}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, {"h": state["h"]})
        return y, {**after, "seen": torch.cat([state["seen"], x], 1)}


class GrowsOnPaper(Healthy):
    state_grows = True


class StateNotBatchFirst(Healthy):
    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        return {"h": super().init_state(batch_size, device, dtype)["h"].T}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, {"h": state["h"].T})
        return y, {"h": after["h"].T}


class RandomBufferUnsaved(Healthy):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.register_buffer("gate", torch.rand(d_model), persistent=False)

    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        return super().fast(x * self.gate, h)

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return super().reference(x * self.gate, h)


class TensorOutsideState(Healthy):
    """A tensor that is neither parameter nor buffer: it goes to no other device."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.gate = torch.linspace(0.5, 1, d_model)

    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        return super().fast(x * self.gate.to(x.dtype), h)

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return super().reference(x * self.gate.to(x.dtype), h)


class LoadsLeniently(Healthy):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.scale = nn.Parameter(torch.ones(d_model))

    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        return super().fast(x * self.scale, h)

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return super().reference(x * self.scale, h)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "scale", self.scale.detach())
        super()._load_from_state_dict(state_dict, prefix, *rest)


class NoisyInEvaluation(WithoutStep):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0.1 * torch.rand(()))


class SeedsItself(Healthy):
    def __init__(self, d_model: int) -> None:
        torch.manual_seed(42)
        super().__init__(d_model)


class SeededByPython(Healthy):
    """Its scale comes from another generator than torch's; a fixed one would not."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, gain=1 + 0.1 * random.random())


class DeadParameter(Healthy):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.unused = nn.Parameter(torch.zeros(d_model))


class FrozenParameter(Healthy):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.proj.bias.requires_grad_(False)


class UnfilledMemory(Healthy):
    """What lies in memory counts for nothing, unless all of it is NaN.

    It is cleared afterwards, so that the same memory cannot be handed out with NaN again when nobody poisons it.
    """

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.empty_like(x)
        poisoned = memory.isnan().all()
        memory.zero_()
        return super().forward(torch.where(poisoned, 2 * x, x))


class FastDiffers(Healthy):
    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return super().reference(x, h) * 1.001

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = self.fast(x, state["h"])
        return self.proj(h), {"h": h[:, -1]}


class Float32Inside(Healthy):
    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        return super().fast(x.float().to(x.dtype), h)

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return super().reference(x.float().to(x.dtype), h)


class Float32Output(Healthy):
    """In float64 it answers in float32, and the residual stream hides it; without one it would show."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class FailsInBfloat16(WithoutStep):
    """It adds what autocast made bfloat16 to what it left float32, in an operation that takes one type only."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.size(1), device=x.device)
        return torch.zeros_like(x).index_add(1, places, super().forward(x))


class Scaled(torch.autograd.Function):
    """The identity, with a derivative of 1.05."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.05 * grad


class WrongDerivative(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return Scaled.apply(super().forward(x))


class CountsItsCalls(Healthy):
    """Statistics that are gathered in training are gathered twice when a block is computed again."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.register_buffer("mean", torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
        return super().forward(x)


class Deaf(Healthy):
    """It hears the last token alone; everything of it learns, and it learns nothing from the context."""

    def fast(self, x: Tensor, h: Tensor) -> Tensor:
        return x

    def reference(self, x: Tensor, h: Tensor) -> Tensor:
        return x


class BreaksTheGraph(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum().item() < 1e9 else -x)


class TakesAnything(Healthy):
    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model)


class NeedsAnOption(Healthy):
    def __init__(self, d_model: int, size: int) -> None:
        super().__init__(d_model)


class DefaultOfAnotherType(Healthy):
    def __init__(self, d_model: int, size: int = 0.5) -> None:  # type: ignore[assignment]
        super().__init__(d_model)


class Reinitialising(Zoo):
    """A zoo whose wrapper initialises everything again, as so many do."""

    def _build_backbone(self, *given: Any) -> nn.Module:
        model = super()._build_backbone(*given)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        return model


MIXERS: dict[type[nn.Module], str] = {
    LeaksOneToken: "is_causal",
    NormOverTime: "is_causal",
    NormOverBatch: "rows_are_independent",
    CountsPadding: "padding_on_the_right",
    NeedsTwoTokens: "odd_shapes",
    StepDecaysFaster: "step_equals_forward",
    ChunkForgets: "chunks_equal_forward",
    StepChangesItsState: "step_leaves_state",
    StepKeepsSomething: "step_leaves_state",
    GrowsSecretly: "state_size_is_measured",
    GrowsOnPaper: "state_size_is_measured",
    StateNotBatchFirst: "state_size_is_measured",
    RandomBufferUnsaved: "survives_save_and_load",
    TensorOutsideState: "builds_on_meta",
    LoadsLeniently: "strict_load",
    NoisyInEvaluation: "eval_is_deterministic",
    SeedsItself: "seeded",
    SeededByPython: "seeded",
    DeadParameter: "every_parameter_learns",
    FrozenParameter: "every_parameter_learns",
    UnfilledMemory: "no_uninitialised_memory",
    FastDiffers: "fast_equals_reference",
    Float32Inside: "works_in_float64",
    FailsInBfloat16: "works_in_bfloat16",
    WrongDerivative: "gradients_match_differences",
    CountsItsCalls: "checkpointing_is_exact",
    Deaf: "learns_a_tiny_language",
    TakesAnything: "signature_is_config",
    NeedsAnOption: "signature_is_config",
    DefaultOfAnotherType: "signature_is_config",
}
"""Each wrong mixer and the check that must find it, and no other."""


# -- datasets --------------------------------------------------------------------------------------------------------


class Coins:
    """Documents of throws of a coin with a bias of its own, a separator after each eight; all the mutants are this."""

    vocabulary = (".", "a", "b", "|")
    pad_id, separator_id = 0, 3
    sizes: ClassVar = {"train": 48, "validation": 20, "test": 20}
    first: ClassVar = {"train": 0, "validation": 1000, "test": 2000}

    def __init__(self, seed: int = 0, longest: int = 40) -> None:
        self.seed, self.longest = seed, longest

    def size(self, split: str) -> int | None:
        return self.sizes[split]

    def document(self, number: int) -> tuple[float, list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 10**6 + number)
        bias = 0.1 + 0.8 * torch.rand((), generator=generator).item()
        length = int(torch.randint(28, self.longest + 1, (), generator=generator))
        throws = (torch.rand(length, generator=generator) >= bias).long() + 1
        return bias, [self.separator_id if i % 9 == 8 else token for i, token in enumerate(throws.tolist())]

    def batch(self, split: str, k: int, batch_size: int, seed: int | None) -> Batch:
        numbers = epoch_indices(self.sizes[split], k, batch_size, seed) + self.first[split]
        return self.laid_out(numbers)

    def laid_out(self, numbers: Tensor) -> Batch:
        biases, rows = zip(*(self.document(int(number)) for number in numbers), strict=True)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        valid = tokens != self.pad_id
        following = nn.functional.pad(tokens[:, 1:], (0, 1))
        targets = following.masked_fill((following == self.pad_id) | (following == self.separator_id), IGNORED)
        return Batch(tokens, targets, valid, numbers.clone(), {"bias": torch.tensor(biases)})

    def oracle(self, batch: Batch) -> Tensor | None:
        bias = batch.extra["bias"][:, None].expand(batch.tokens.shape)
        nothing = torch.zeros_like(bias)
        return torch.stack([nothing, bias, 1 - bias, nothing], -1) * batch.valid[..., None]


class TargetsNotShifted(Coins):
    def laid_out(self, numbers: Tensor) -> Batch:
        batch = super().laid_out(numbers)
        kept = batch.valid & (batch.tokens != self.separator_id)
        return Batch(batch.tokens, batch.tokens.masked_fill(~kept, IGNORED), batch.valid, batch.group, batch.extra)


class Remembers(Coins):
    """The order of a batch's rows depends on how many were asked for before."""

    calls = 0

    def batch(self, split: str, k: int, batch_size: int, seed: int | None) -> Batch:
        self.calls += 1
        numbers = epoch_indices(self.sizes[split], k, batch_size, seed) + self.first[split]
        return self.laid_out(numbers.roll(self.calls))


class DrawsGlobally(Coins):
    def batch(self, split: str, k: int, batch_size: int, seed: int | None) -> Batch:
        torch.rand(())
        return super().batch(split, k, batch_size, seed)


class OracleSumsToMore(Coins):
    def oracle(self, batch: Batch) -> Tensor | None:
        return super().oracle(batch) * 1.1


class OracleIsWrong(Coins):
    """A little too sure of itself."""

    def oracle(self, batch: Batch) -> Tensor | None:
        squared = super().oracle(batch) ** 1.5
        return squared / squared.sum(-1, keepdim=True).clamp(min=1e-9)


class SplitsOverlap(Coins):
    first: ClassVar = {"train": 0, "validation": 1000, "test": 30}


class RepeatsToFill(Coins):
    """The last batch of a pass is filled up with rows of its beginning."""

    def batch(self, split: str, k: int, batch_size: int, seed: int | None) -> Batch:
        indices = epoch_indices(self.sizes[split], k, batch_size, seed)
        more = epoch_indices(self.sizes[split], 0, batch_size, seed)[: batch_size - len(indices)]
        return self.laid_out(torch.cat([indices, more]) + self.first[split])


class CallsHome(Coins):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.01).close()


class PadsOnTheLeft(Coins):
    def laid_out(self, numbers: Tensor) -> Batch:
        batch = super().laid_out(numbers)
        order = (torch.arange(batch.tokens.size(1)) + batch.valid.sum(1, keepdim=True)) % batch.tokens.size(1)
        moved = [tensor.gather(1, order) for tensor in (batch.tokens, batch.targets, batch.valid)]
        return Batch(*moved, batch.group, batch.extra)


class OptionsNotJson(Coins):
    def __init__(self, seed: int = 0, splits: tuple[int, ...] = (48, 20)) -> None:
        super().__init__(seed)


DATASETS: dict[type, str] = {
    TargetsNotShifted: "targets_are_shifted",
    Remembers: "batch_is_pure",
    DrawsGlobally: "batch_is_pure",
    OracleSumsToMore: "oracle_sums_to_one",
    OracleIsWrong: "oracle_is_the_best_scorer",
    SplitsOverlap: "splits_are_disjoint",
    RepeatsToFill: "every_sequence_once",
    CallsHome: "no_network_in_constructor",
    PadsOnTheLeft: "batches_have_the_stated_form",
    OptionsNotJson: "signature_is_config",
}


# -- metrics ---------------------------------------------------------------------------------------------------------


class Brier:
    """The mean squared distance to the truth, over the positions that are not padding; all the mutants are this."""

    direction = "lower"
    needs_oracle = True

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> tuple[Tensor, Tensor]:
        return self.distances(probabilities, batch, oracle).sum(1), batch.valid.sum(1)

    def distances(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> Tensor:
        distance = (probabilities.double() - oracle).square().sum(-1)
        return distance.masked_fill(~batch.valid, 0)


class AveragesTheBatch(Brier):
    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = super().__call__(probabilities, batch, oracle)
        return (sums.sum() / counts.sum()).expand(len(sums)).clone(), torch.ones_like(counts)


class KeepsRunning(Brier):
    total = 0.0

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = super().__call__(probabilities, batch, oracle)
        before, self.total = self.total, self.total + float(sums.sum())
        return sums + before, counts


class WrongDirection(Brier):
    direction = "higher"


class NoDirection(Brier):
    direction = "down"


class CountsPads(Brier):
    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> tuple[Tensor, Tensor]:
        distance = (probabilities.double() - oracle).square().sum(-1)
        return distance.sum(1), torch.full((len(distance),), distance.size(1))


class NeverPerfect(Brier):
    def distances(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> Tensor:
        return (super().distances(probabilities, batch, oracle) + 0.1).masked_fill(~batch.valid, 0)


class Renormalises(Brier):
    """A learner that says nothing makes it divide by zero."""

    def distances(self, probabilities: Tensor, batch: Batch, oracle: Tensor) -> Tensor:
        return super().distances(probabilities / probabilities.sum(-1, keepdim=True), batch, oracle)


class TakesAnyOption(Brier):
    def __init__(self, **options: Any) -> None:
        pass


METRICS: dict[type, str] = {
    AveragesTheBatch: "batch_size_invariant",
    KeepsRunning: "additive",
    WrongDirection: "direction_is_right",
    NoDirection: "states_direction",
    CountsPads: "padding_invariant",
    NeverPerfect: "known_values",
    Renormalises: "sums_and_counts",
    TakesAnyOption: "signature_is_config",
}


# -- the zoo of them -------------------------------------------------------------------------------------------------


def name_of(target: type) -> str:
    """LeaksOneToken -> leaks-one-token."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in target.__name__).lstrip("-")


REGISTRATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no-licence": ({"paper": "unpublished"}, "has_licence_and_paper"),
    "no-paper": ({"license": "Apache-2.0"}, "has_licence_and_paper"),
    "free-licence": ({"license": "do what you like", "paper": "unpublished"}, "has_licence_and_paper"),
    "bad-preset": ({**ABOUT, "presets": {"wide": {"d_modle": 64}}}, "presets_build"),
}
"""Healthy mixers whose registration is at fault."""


def zoo_of_mutants(kind: Callable[[], Zoo] = Zoo) -> Zoo:
    """Everything here in one zoo, registered as a script does."""
    zoo = kind()

    def add(what: Any, name: str, target: type, **about: Any) -> None:
        # By "module:Class", as a plugin does: what is wrong with a signature then shows when it is used.
        zoo.registry.add(entries_of(what, SCRIPT, SCRIPT, name, f"mutants:{target.__qualname__}", **about))

    presets = {"wide": {"d_model": 64}}
    for target in (Healthy, *MIXERS, BreaksTheGraph, Float32Output):
        add("mixer", name_of(target), target, **ABOUT, presets=presets)
    for name, (about, _) in REGISTRATIONS.items():
        add("mixer", name, Healthy, **about)
    for target in (Coins, *DATASETS):
        add("dataset", name_of(target), target, **ABOUT)
    for target in (Brier, *METRICS):
        add("metric", name_of(target), target, **ABOUT)
    zoo.registry.add(entries_of("metric", SCRIPT, SCRIPT, "brier-unlicensed", "mutants:Brier"))
    return zoo
