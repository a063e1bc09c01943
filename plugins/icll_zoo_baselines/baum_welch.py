"""Baum-Welch (Baum et al. 1970, doi:10.1214/aoms/1177697196) on an automaton's edges, "baum-welch".

    hidden state (i, j): the edge from state i to j of an automaton of n states, i != j; it emits a symbol by B
    (i, j) -> (j, k) by A, anything else by A's floor;  strings start on an edge (0, j) by pi
    at every position: A, B at random, a few rounds of expectation maximisation on all strings read so far, the open one
    included; then the chance of each symbol on the edge after the open string's last

The learner that Akyurek et al. 2024 (arXiv:2401.12973) compare with, by the rules of their code:

- States are reached breadth-first, five new ones a step: 0; 1 to 5; then up to 10, and 0; then all. An edge is possible
  at step t if its ends can be reached at t and t + 1.
- EPS is added to every row that an update makes, before it is normalised, and twice to the impossible transitions, so
  that any edge can follow any other with a small probability. The pad is never emitted.
- After a separator the fit before it predicts, by pi B.

The defaults are theirs: 12 states, 10 rounds, one start. `restarts` keeps the most likely of several fits at each
position; `tolerance` ends a fit whose likelihood does not rise any more. Three slips of theirs are not repeated: the
reachable states bind the first and the last step of a string and the prediction too, and transitions are divided by how
often their edge was left, not left or last. Every position's random start is a function of (seed, restart, position).

Fits are worked on in batches, of positions and of sequences. A transition is a sum over i for each j, so a step costs
n^3 operations a string where a matrix of all edges costs n^4. Strings of a fit lie side by side, longest first, and
step t works on those longer than t. Probabilities are scaled at every step instead of taken to logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from icll_zoo import InputError, splitmix64

EPS = 1e-5
REACH = 5
"""How many new states a step reaches."""
COLUMNS = 1 << 12
"""Symbols of all fits worked on at once on a CPU: their tables of 144 float32 take 2.4 MB each. 2^15 took a third
longer."""
COLUMNS_GPU = 1 << 20
Precision = Literal["float32", "float64"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Strings(NamedTuple):
    """The strings of f fits, packed: those longer than t are the first widths[t] of step t's columns.

    symbol: (f, columns) int64. active, final: (f, columns), 1.0 where a fit has a symbol there, and where it is its
    string's last. number: (f,) how many strings. open_end: (f,) the column of the open string's last symbol.
    open_length: (f,). previous: (columns after step 0,) the same string's column one step before.
    """

    widths: list[int]
    symbol: Tensor
    active: Tensor
    final: Tensor
    number: Tensor
    open_end: Tensor
    open_length: Tensor
    previous: Tensor

    def some(self, fits: Tensor) -> Strings:
        """Those of some of the fits only."""
        each = {name: getattr(self, name)[fits] for name in self._fields if name not in ("widths", "previous")}
        return self._replace(**each)


class Hmm(NamedTuple):
    """f models. Edge (i, j) lies at [j, i]: what an edge leads to comes first, as the next step batches over it.

    transition: (f, n, n, n), [j, i, k] from (i, j) to (j, k). floor: (f, n, n), to any other edge.
    emission: (f, n, n, v). start: (f, n, n).
    """

    transition: Tensor
    floor: Tensor
    emission: Tensor
    start: Tensor


# -- the strings of a fit ------------------------------------------------------------------------------------------


class Reading:
    """Which strings stand before each position of a batch of ids (b, l). A pad ends a string, as a separator does.

    within: (b, l) bool, no pad. symbol: (b, l) bool, neither a pad nor a separator.
    last: (b, l), the last position up to each that read a symbol; -1 for none.
    string: (b, l), the number of each symbol's string, counting no empty ones. begin, length: (b, strings).
    """

    def __init__(self, tokens: Tensor, separator_id: int | None, pad_id: int) -> None:
        b, length = tokens.shape
        self.tokens = tokens
        place = torch.arange(length, device=tokens.device).expand(b, -1)
        self.within = tokens != pad_id
        self.symbol = self.within if separator_id is None else self.within & (tokens != separator_id)
        self.last = torch.where(self.symbol, place, -1).cummax(1).values
        first = self.symbol.clone()
        first[:, 1:] &= ~self.symbol[:, :-1]
        self.string = first.cumsum(1) - 1
        count = int(first.sum(1).amax()) if b else 0
        self.begin = torch.zeros(b, count, dtype=torch.int64, device=tokens.device)
        rows, places = first.nonzero(as_tuple=True)
        self.begin[rows, self.string[rows, places]] = places
        self.length = torch.zeros_like(self.begin)
        self.length.scatter_add_(1, self.string.clamp(min=0), self.symbol.long())

    def pack(self, row: Tensor, position: Tensor, dtype: torch.dtype) -> Strings:
        """The strings up to given positions (f,) of given rows (f,), each position a symbol's."""
        device = row.device
        own = self.string[row, position]
        count = int(own.amax()) + 1
        slot = torch.arange(count, device=device)
        begin, length = self.begin[row, :count], self.length[row, :count]
        open_length = position + 1 - begin.gather(1, own[:, None])[:, 0]
        length = torch.where(slot < own[:, None], length, 0).scatter(1, own[:, None], open_length[:, None])
        length, order = length.sort(dim=1, descending=True, stable=True)
        begin = begin.gather(1, order)
        steps = torch.arange(int(length.amax()), device=device)
        widths: list[int] = (length[:, :, None] > steps).sum(1).amax(0).tolist()
        step = steps.repeat_interleave(torch.tensor(widths, device=device))
        offset = [0]
        for width in widths:
            offset.append(offset[-1] + width)
        starts = torch.tensor(offset, device=device)
        slot = torch.arange(offset[-1], device=device) - starts[step]
        active = step < length[:, slot]
        at = (begin[:, slot] + step).clamp(max=self.tokens.size(1) - 1)
        symbol = self.tokens[row[:, None], at].masked_fill(~active, 0)
        open_slot = (order == own[:, None]).int().argmax(1)
        after = step[widths[0] :]
        return Strings(
            widths, symbol, active.to(dtype), (step == length[:, slot] - 1).to(dtype), own + 1,
            starts[open_length - 1] + open_slot, open_length, starts[after - 1] + slot[widths[0] :],
        )  # fmt: skip


# -- the model -----------------------------------------------------------------------------------------------------


def reachable(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The edges that are possible at each of the first steps, (steps, n, n) bool at [t, j, i], the last for all later
    ones too, and the edges that a transition may leave, (n, n)."""
    ends, new = [{0}, set(range(1, min(n, REACH + 1)))], REACH + 1
    while len(ends[-1]) < n:
        ends.append(ends[-1] | {0, *range(new, min(n, new + REACH))})
        new += REACH
    ends.append(ends[-1])
    edge = ~torch.eye(n, dtype=torch.bool, device=device)
    is_end = torch.tensor([[i in at for i in range(n)] for at in ends], device=device)
    return is_end[1:, :, None] & is_end[:-1, None, :] & edge, edge


def uniform(
    seed: int, restart: int, position: Tensor, first: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Numbers in (0, 1) for each position (f,), words `first` on of a stream of its own: (f, *shape)."""
    key = splitmix64(splitmix64(torch.full_like(position, seed), restart), position)
    count = 1
    for size in shape:
        count *= size
    words = splitmix64(key[:, None], first + torch.arange(count, device=position.device))
    return (((words >> 11) & ((1 << 53) - 1)).double() + 0.5).div(2.0**53).to(dtype).view(-1, *shape)


def random_start(position: Tensor, n: int, vocab_size: int, seed: int, restart: int, dtype: torch.dtype) -> Hmm:
    """The models that the fits at given positions (f,) start from."""
    _, edge = reachable(n, position.device)
    weight = uniform(seed, restart, position, 0, (n, n, n), dtype).add_(EPS)
    floor = torch.full((len(position), n, n), EPS, dtype=dtype, device=position.device)
    transition, floor = normalised(weight, floor, edge)
    emission = uniform(seed, restart, position, n**3, (n, n, vocab_size), dtype).add_(EPS)
    start = torch.full_like(floor, EPS)
    start[:, 1:, 0] = 1 - EPS
    return Hmm(
        transition, floor, emission.div_(emission.sum(-1, keepdim=True)), start / start.sum((1, 2), keepdim=True)
    )


def normalised(weight: Tensor, floor: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of A that sum to one over the n^2 edges: weights (f, n, n, n) to the edges that follow, which an edge from a
    state to itself has none of, and one floor (f, n, n) to all others."""
    n = len(edge)
    weight = torch.where(edge[..., None], weight, floor[..., None])
    total = weight.sum(-1) + (n * n - n) * floor
    return weight / total[..., None], floor / total


# -- expectation and maximisation ----------------------------------------------------------------------------------


def emitted(model: Hmm, strings: Strings, possible: Tensor) -> Tensor:
    """The chance of each column's symbol on every edge, (f, n, n, columns); 0 on edges that cannot be reached."""
    f, n = model.start.shape[:2]
    v = model.emission.size(-1)
    dtype = model.start.dtype
    # A product with ones and zeros: as exact as a gather, and several times faster on a CPU.
    chosen = torch.zeros(f, v, strings.symbol.size(1), dtype=dtype, device=strings.symbol.device)
    chosen.scatter_(1, strings.symbol[:, None], strings.active[:, None])
    table = (model.emission * possible[-1, ..., None]).view(f, n * n, v)
    e = torch.bmm(table, chosen).view(f, n, n, -1)
    begin = 0
    for t, width in enumerate(strings.widths[: len(possible) - 1]):
        e[..., begin : begin + width] *= possible[t, ..., None]
        begin += width
    return e


def forward_pass(model: Hmm, strings: Strings, e: Tensor) -> tuple[Tensor, Tensor]:
    """The chance of each edge given its string up to the column, (f, n, n, columns), and of each column's symbol given
    those before it, (f, columns), 1 where there is none. e: as `emitted` gives it."""
    f, n = model.start.shape[:2]
    alpha = torch.empty_like(e)
    scale = torch.empty(f, e.size(-1), dtype=e.dtype, device=e.device)
    # (f n) matrices [k, i] for each j; the floor goes to all edges, so that only what exceeds it is left here.
    move = (model.transition - model.floor[..., None]).view(f * n, n, n).mT.contiguous()
    floor = model.floor.view(f, 1, n * n)
    absent = 1 - strings.active
    begin = before = 0
    for t, width in enumerate(strings.widths):
        end = begin + width
        here = alpha[..., begin:end]
        if t == 0:
            torch.mul(e[..., :end], model.start[..., None], out=here)
        else:
            last = alpha[..., before : before + width]
            moved = torch.bmm(move, last.view(f * n, n, width)).view(f, n, n, width).transpose(1, 2)
            leak = torch.bmm(floor, last.reshape(f, n * n, width))
            torch.add(moved, leak[:, :, None], out=here)
            here.mul_(e[..., begin:end])
        total = here.sum((1, 2)).add_(absent[:, begin:end])
        here.div_(total[:, None, None])
        scale[:, begin:end] = total
        before, begin = begin, end
    return alpha, scale


def maximised(model: Hmm, strings: Strings, e: Tensor, alpha: Tensor, scale: Tensor, edge: Tensor, pad_id: int) -> Hmm:
    """One round's new models from the forward pass of the old ones. e is used up."""
    f, n, _, columns = e.shape
    dtype = e.dtype
    first = strings.widths[0]
    e.div_(scale[:, None, None])
    beta = strings.final[:, None, None].expand(-1, n, n, -1).clone()
    # What follows a column, [j, k]: the edge (j, k) emits the next symbol, and the rest of the string comes.
    follow = torch.empty(f, n, n, columns - first, dtype=dtype, device=e.device)
    move = (model.transition - model.floor[..., None]).view(f * n, n, n)
    end = columns
    for t in range(len(strings.widths) - 1, 0, -1):
        width = strings.widths[t]
        begin = end - width
        before = begin - strings.widths[t - 1]
        here = follow[..., begin - first : end - first]
        torch.mul(e[..., begin:end].transpose(1, 2), beta[..., begin:end].transpose(1, 2), out=here)
        moved = torch.bmm(move, here.view(f * n, n, width)).view(f, n, n, width)
        total = here.sum((1, 2))
        moved.addcmul_(model.floor[..., None], total[:, None, None])
        beta[..., before : before + width] += moved
        end = begin
    gamma = beta.mul_(alpha)
    used = alpha.index_select(-1, strings.previous).view(f * n, n, -1)
    moves = torch.bmm(used, follow.view(f * n, n, -1).mT).view(f, n, n, n).mul_(model.transition)
    # How often each edge was left, and emitted each symbol, in one product.
    v = model.emission.size(-1)
    counted = torch.zeros(f, v + 1, columns, dtype=dtype, device=e.device)
    counted.scatter_(1, strings.symbol[:, None], strings.active[:, None])
    counted[:, v] = strings.active - strings.final
    counts = torch.bmm(gamma.view(f, n * n, columns), counted.mT).view(f, n, n, v + 1)
    transition, floor = normalised(
        (moves / (counts[..., v:] + EPS)).add_(EPS), torch.full_like(model.floor, 2 * EPS), edge
    )
    emission = counts[..., :v] + EPS
    emission[..., pad_id] = EPS
    start = gamma[..., :first].sum(-1) / strings.number[:, None, None].to(dtype) + EPS
    start[..., 1:] = EPS
    start[:, 0, 0] = EPS
    return Hmm(
        transition, floor, emission.div_(emission.sum(-1, keepdim=True)), start / start.sum((1, 2), keepdim=True)
    )


def trained(model: Hmm, strings: Strings, iterations: int, tolerance: float, pad_id: int) -> Hmm:
    """Rounds of expectation maximisation, until each fit's likelihood rises by `tolerance` nats or less in one."""
    possible, edge = reachable(model.start.size(1), model.start.device)
    result, at = model, torch.arange(len(model.start), device=model.start.device)
    likelihood = torch.full(at.shape, -torch.inf, dtype=torch.float64, device=at.device)
    for _ in range(iterations):
        e = emitted(model, strings, possible)
        alpha, scale = forward_pass(model, strings, e)
        model = maximised(model, strings, e, alpha, scale, edge, pad_id)
        if tolerance <= 0:
            result = model
            continue
        now = scale.double().log().sum(1)
        going = (now - likelihood > tolerance).nonzero()[:, 0]
        result = Hmm(*(old.index_copy(0, at, new) for old, new in zip(result, model, strict=True)))
        if not len(going):
            break
        likelihood = now[going]
        if len(going) < len(at):
            # The others go on alone.
            at, model, strings = at[going], Hmm(*(x[going] for x in model)), strings.some(going)
    return result


def said(model: Hmm, strings: Strings) -> tuple[Tensor, Tensor, Tensor]:
    """The log-likelihoods of all strings (f,), float64, and the chances of the open string's next symbol and of a
    string's first symbol, (f, v) each."""
    f, n = model.start.shape[:2]
    possible, _ = reachable(n, model.start.device)
    alpha, scale = forward_pass(model, strings, emitted(model, strings, possible))
    last = alpha.gather(-1, strings.open_end[:, None, None, None].expand(-1, n, n, 1))[..., 0]
    moved = torch.einsum("fjik,fji->fkj", model.transition - model.floor[..., None], last)
    moved = moved + (model.floor * last).sum((1, 2), keepdim=True)
    moved = moved * possible[strings.open_length.clamp(max=len(possible) - 1)]
    following, first = (
        torch.bmm(edges.reshape(f, 1, n * n), model.emission.view(f, n * n, -1))[:, 0]
        for edges in (moved, model.start * possible[0])
    )
    return (
        scale.double().log().sum(1),
        following / following.sum(1, keepdim=True),
        first / first.sum(1, keepdim=True),
    )


class BaumWelchLearner(nn.Module):
    """A hidden Markov model fitted at every position: token ids (b, l) -> next-token probabilities (b, l, v).

    separator_id: the token between strings; None reads each row as one string. Before the first symbol every token but
    the pad and the separator is as likely. pad_id: ends a string too, and predicts zeros.
    states: n, of the automaton whose edges are the hidden states. iterations: rounds of expectation maximisation at
    most. tolerance: a fit whose log-likelihood rises by this many nats or less in a round is done; 0 never is.
    restarts: how many random starts, of which the likeliest fit predicts. seed: of the starts.
    precision: of the arithmetic and of the output.
    """

    output = "probabilities"
    # Two shapes of a batch may round differently, and ten rounds make something of that in float32.
    icll_zoo_check_options: ClassVar = {"states": 4, "iterations": 3, "precision": "float64"}

    def __init__(
        self,
        vocab_size: int,
        separator_id: int | None,
        pad_id: int,
        states: int = 12,
        iterations: int = 10,
        tolerance: float = 0.0,
        restarts: int = 1,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        for name, value, least in (("states", states, 2), ("iterations", iterations, 0), ("restarts", restarts, 1)):
            if value < least:
                raise InputError(f"{name} {value} is not at least {least}")
        if tolerance < 0:
            raise InputError(f"tolerance {tolerance} is negative", hint="0 does all iterations")
        self.vocab_size = vocab_size
        self.separator_id = separator_id
        self.pad_id = pad_id
        self.states = states
        self.iterations = iterations
        self.tolerance = tolerance
        self.restarts = restarts
        self.seed = seed
        self.dtype = DTYPES[precision]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(tokens)[0]

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions (b, l, v), and the log-likelihood of all that was read by the fit that predicts, (b, l)
        float64; -inf where nothing was read."""
        reading = Reading(tokens, self.separator_id, self.pad_id)
        b, length = tokens.shape
        following = torch.zeros(b, length, self.vocab_size, dtype=self.dtype, device=tokens.device)
        first = torch.zeros_like(following)
        likelihood = torch.full((b, length), -torch.inf, dtype=torch.float64, device=tokens.device)
        for row, position in self.batches(reading):
            strings = reading.pack(row, position, self.dtype)
            found = None
            for restart in range(self.restarts):
                model = random_start(position, self.states, self.vocab_size, self.seed, restart, self.dtype)
                model = trained(model, strings, self.iterations, self.tolerance, self.pad_id)
                again = said(model, strings)
                better = (
                    again
                    if found is None
                    else tuple(
                        torch.where((again[0] > found[0]).view(-1, *[1] * (x.ndim - 1)), x, y)
                        for x, y in zip(again, found, strict=True)
                    )
                )
                found = better
            likelihood[row, position], following[row, position], first[row, position] = found
        # After a separator: how strings begin, by the last fit.
        rows = torch.arange(b, device=tokens.device)[:, None]
        out = torch.where(reading.symbol[..., None], following, first[rows, reading.last.clamp(min=0)])
        special = [i for i in (self.pad_id, self.separator_id) if i is not None and 0 <= i < self.vocab_size]
        flat = torch.ones(self.vocab_size, dtype=self.dtype, device=tokens.device)
        flat[special] = 0
        out = torch.where(((reading.last < 0) & reading.within)[..., None], flat / flat.sum().clamp(min=1), out)
        likelihood = likelihood[rows, reading.last.clamp(min=0)].masked_fill(reading.last < 0, -torch.inf)
        return out * reading.within[..., None], likelihood

    def batches(self, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
        """All symbols' rows and positions, as many at once as the budget of columns allows."""
        row, position = reading.symbol.nonzero(as_tuple=True)
        on_cpu = row.device.type == "cpu"
        if not on_cpu:
            order = reading.string[row, position].argsort(stable=True)
            row, position = row[order], position[order]
        begin, budget, longest = 0, COLUMNS if on_cpu else COLUMNS_GPU, 0
        rows, positions = row.tolist(), position.tolist()
        for end in range(len(rows) + 1):
            if end < len(rows):
                now = max(longest, positions[end] + 1)
                # One row at a time on a CPU: strings of like lengths lie side by side without gaps.
                mixed = on_cpu and rows[end] != rows[begin]
                if end == begin or (not mixed and now * (end + 1 - begin) <= budget):
                    longest = now
                    continue
            if end > begin:
                yield row[begin:end], position[begin:end]
            begin = end
            longest = positions[end] + 1 if end < len(rows) else 0
