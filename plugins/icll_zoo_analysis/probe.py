"""Probes: small models that read n-gram statistics and states from a model's hidden states.

    linear, of an n-gram      y = w_c . h + b_1[q_1] + ... + b_n[q_n],   c = q_n the symbol asked for
    linear, of two states     y = b - |P (h - h')|^2,  P of rank 32 (the structural probe of Hewitt & Manning 2019)
    mlp, of an n-gram         y = v . tanh(W [e, p, e p]),  e the embeddings of the query,  p = P h
    mlp, of two states        y = v . tanh(W [p, p', p p'])

The MLPs are those of Akyurek et al. 2024 (arXiv:2401.12973). Beside each probe stands one of a control task (Hewitt &
Liang 2019, arXiv:1909.03368): the answer to each query is drawn at random, once and for all sequences, so that it can
be learned by heart but not be read from a context. Selectivity is the score less the control's. A probe that sees no
hidden state, "query", shows what the query alone tells.

Scores: of a yes or no, the accuracy; of a number, R^2 = 1 - squared error / variance. Fitted on sequences of the
training split, scored on those of the test split; intervals are over the languages of the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import Accumulator, Dataset, InputError, bootstrap, interval
from icll_zoo_analysis.probe_samples import SAME_STATE, Questions, collect, is_binary, task_names

Kind = Literal["linear", "mlp"]
PATTERNS = ("dropout", "blocks.*")
"""The residual stream that enters the first block, and that leaves each."""
QUERY = "query"
RANK = 32
WIDTH = 32
"""Of an MLP's embeddings and hidden layer."""
STEPS: dict[Kind, int] = {"linear": 800, "mlp": 400}
BATCH, LEARNING_RATE, WEIGHT_DECAY = 512, 1e-2, 0.1


@dataclass(frozen=True)
class ProbeScore:
    """What one probe reads from one layer: its score with its 95 % interval, and that of the control task.

    error: of a number, the mean of |prediction - target| / target. samples: how many were scored.
    """

    task: str
    layer: str
    probe: str
    score: float
    low: float
    high: float
    control: float
    selectivity: float
    error: float | None
    samples: int


class NgramProbe(nn.Module):
    """One probe a layer, all fitted side by side: h (layers, n, d), query (n, k) -> (layers, n)."""

    def __init__(self, kind: Kind, layers: int, d: int, vocab_size: int, k: int, width: int = WIDTH) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.weight = nn.Parameter(torch.zeros(layers, vocab_size, d))
            self.bias = nn.Parameter(torch.zeros(layers, k, vocab_size))
            return
        wide = k * width
        self.embedding = nn.Parameter(torch.randn(layers, k, vocab_size, width) * 0.5)
        self.project = Linears(layers, d, wide)
        self.hidden = Linears(layers, 3 * wide, width)
        self.out = Linears(layers, width, 1)

    def forward(self, h: Tensor, query: Tensor) -> Tensor:
        places = torch.arange(query.size(1))
        if self.kind == "linear":
            return (self.weight[:, query[:, -1]] * h).sum(-1) + self.bias[:, places, query].sum(-1)
        e, p = self.embedding[:, places, query].flatten(2), self.project(h)
        return self.out(torch.tanh(self.hidden(torch.cat([e, p, e * p], -1))))[..., 0]


class StateProbe(nn.Module):
    """One probe a layer: h (layers, n, 2, d) of two positions -> (layers, n), above 0 for the same state."""

    def __init__(self, kind: Kind, layers: int, d: int, width: int = WIDTH) -> None:
        super().__init__()
        self.kind = kind
        self.project = Linears(layers, d, RANK if kind == "linear" else width, bias=kind == "mlp")
        if kind == "linear":
            self.bias = nn.Parameter(torch.ones(layers, 1))
        else:
            self.hidden = Linears(layers, 3 * width, width)
            self.out = Linears(layers, width, 1)

    def forward(self, h: Tensor, query: Tensor) -> Tensor:
        first, second = h.unbind(2)
        if self.kind == "linear":
            return self.bias - self.project(first - second).square().sum(-1)
        first, second = self.project(first), self.project(second)
        return self.out(torch.tanh(self.hidden(torch.cat([first, second, first * second], -1))))[..., 0]


class Linears(nn.Module):
    """A linear layer for each of several probes: x (layers, n, d_in) -> (layers, n, d_out)."""

    def __init__(self, layers: int, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layers, d_in, d_out) * d_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(layers, 1, d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def probe_scores(
    model: nn.Module,
    dataset: Dataset,
    *,
    kind: Kind = "linear",
    tasks: Sequence[str] | None = None,
    patterns: Sequence[str] = PATTERNS,
    orders: Sequence[int] = (1, 2, 3),
    train: int = 2000,
    test: int = 500,
    positions: int = 8,
    start: int = 75,
    device: torch.device | str = "cpu",
    seed: int = 0,
    report: Callable[[str, int, int], Any] = lambda what, done, total: None,
) -> list[ProbeScore]:
    """Probes of every layer that matches the patterns, for every task.

    train, test: sequences of these splits; positions: questions of each; see `probe_samples.collect`. tasks: some of
    `probe_samples.task_names`. seed: of the questions, the controls and the probes.
    report: told what is being done, how much of it is done, and of how much.
    """
    options: dict[str, Any] = {"patterns": patterns, "orders": orders, "positions": positions, "start": start}
    options |= {"device": device}
    fitted = collect(
        model, dataset, "train", train, seed=seed, report=lambda done: report("reading train", done, train), **options
    )
    scored = collect(
        model, dataset, "test", test, seed=seed + 1, report=lambda done: report("reading test", done, test), **options
    )
    hidden, hidden_test = standardised(fitted.hidden, scored.hidden)
    layers = [QUERY, *fitted.hidden]
    names = list(tasks or task_names(orders, SAME_STATE in fitted.tasks))
    found = []
    for number, task in enumerate(names):
        report("fitting", number, len(names))
        a, b = fitted.tasks[task], scored.tasks[task]
        if not len(a) or not len(b):
            raise InputError(f"no position of these sequences has a question of {task}", hint="leave it out of --tasks")
        own = run(kind, task, hidden, a, hidden_test, b, len(dataset.vocabulary), seed)
        control_a, control_b = control_task(task, a, b, seed)
        control = run(kind, task, hidden, control_a, hidden_test, control_b, len(dataset.vocabulary), seed)
        for index, layer in enumerate(layers):
            score, low, high, error = measured(task, own[index], b)
            other = measured(task, control[index], control_b)[0]
            found.append(ProbeScore(task, layer, kind, score, low, high, other, score - other, error, len(b)))
    report("fitting", len(names), len(names))
    return found


def standardised(train: dict[str, Tensor], test: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (1 + layers, places, d), each dimension to mean 0 and deviation 1 on the training ones; first
    those that tell nothing, all zeros. Narrower layers have zeros at the end."""
    d = max(x.size(1) for x in train.values())
    made: list[list[Tensor]] = [[], []]
    for name, x in train.items():
        mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
        for place, values in enumerate((x, test[name])):
            made[place].append(F.pad((values - mean) / deviation, (0, d - x.size(1))))
    first, second = (torch.stack([torch.zeros_like(parts[0]), *parts]) for parts in made)
    return first, second


def control_task(task: str, train: Questions, test: Questions, seed: int) -> tuple[Questions, Questions]:
    """The same questions with an answer for each query, drawn from the training answers, the same in both parts.

    Of two states the query is the pair of tokens, whichever comes first.
    """
    queries = torch.cat([train.query, test.query])
    if task == SAME_STATE:
        queries = queries.sort(-1)[0]
    kinds = torch.unique(queries, dim=0, return_inverse=True)[1]
    generator = torch.Generator().manual_seed(seed)
    count = int(kinds.max()) + 1
    if is_binary(task):
        answers = torch.randint(2, (count,), generator=generator).float()
    else:
        answers = train.target[torch.randint(len(train), (count,), generator=generator)]
    target = answers[kinds]
    return (
        Questions(train.place, train.query, target[: len(train)], train.group),
        Questions(test.place, test.query, target[len(train) :], test.group),
    )


def run(
    kind: Kind,
    task: str,
    hidden: Tensor,
    train: Questions,
    hidden_test: Tensor,
    test: Questions,
    vocab_size: int,
    seed: int,
) -> Tensor:
    """Fit the probes of all layers and predict: (layers, test questions), numbers, or logits of a yes."""
    layers, _, d = hidden.shape
    binary = is_binary(task)
    mean, deviation = (0.0, 1.0) if binary else (train.target.mean(), train.target.std().clamp(min=1e-6))
    target = (train.target - mean) / deviation
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = (
            StateProbe(kind, layers, d)
            if task == SAME_STATE
            else NgramProbe(kind, layers, d, vocab_size, train.query.size(1))
        )
    optimizer = torch.optim.AdamW(made.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS[kind])
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for _ in range(STEPS[kind]):
            if len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(train), generator=generator)])
            chosen, order = order[:BATCH], order[BATCH:]
            y = made(hidden[:, train.place[chosen]], train.query[chosen])
            wanted = target[chosen].expand_as(y)
            # A sum over layers, so that each probe is fitted as if it were alone.
            loss = F.binary_cross_entropy_with_logits(y, wanted) if binary else F.mse_loss(y, wanted)
            optimizer.zero_grad()
            (loss * layers).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        parts = [
            made(hidden_test[:, p], q) for p, q in zip(test.place.split(4096), test.query.split(4096), strict=True)
        ]
    return torch.cat(parts, 1) * deviation + mean


def measured(task: str, prediction: Tensor, test: Questions) -> tuple[float, float, float, float | None]:
    """The score of predictions (n,), its interval over languages, and the mean relative error of a number."""
    error = None
    sums = Accumulator()
    if is_binary(task):
        good = ((prediction > 0) == (test.target > 0.5)).double()
        sums.add(test.group, good, torch.ones_like(good))
    else:
        # R^2 as a ratio of two sums over languages; the variance is about the mean of all of them.
        squared = (prediction - test.target).double().square()
        sums.add(test.group, squared, (test.target - test.target.mean()).double().square())
        error = float(((prediction - test.target).abs() / test.target).mean())
    value, means = bootstrap(*sums.table())
    low, high = interval(means)
    if is_binary(task):
        return float(value), float(low), float(high), error
    return 1 - float(value), 1 - float(high), 1 - float(low), error
