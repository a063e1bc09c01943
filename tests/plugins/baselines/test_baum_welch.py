"""Baum-Welch against the plain form over matrices of all edges, and that one against sums over all paths."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, evaluate
from icll_zoo_baselines import baum_welch
from icll_zoo_baselines.baum_welch import EPS, BaumWelchLearner, random_start, reachable
from icll_zoo_baselines.baum_welch_reference import dense, fitted, predicted

V, PAD, SEPARATOR = 7, 0, 6


def learner(**options: Any) -> BaumWelchLearner:
    given = {"vocab_size": V, "separator_id": SEPARATOR, "pad_id": PAD, "states": 4, "precision": "float64"}
    return BaumWelchLearner(**given | options)


def start_of(position: int, learned: BaumWelchLearner, restart: int = 0) -> Any:
    at = torch.tensor([position])
    return random_start(at, learned.states, learned.vocab_size, learned.seed, restart, torch.float64)


def split(tokens: list[int]) -> list[list[int]]:
    strings: list[list[int]] = [[]]
    for token in tokens:
        if token == SEPARATOR:
            strings.append([])
        else:
            strings[-1].append(token)
    return strings


def plain(tokens: list[int], learned: BaumWelchLearner) -> tuple[Tensor, list[float]]:
    """Predictions and likelihoods at every position, one fit after the other."""
    rows, likelihoods = [], []
    model, likelihood = None, -math.inf
    for t in range(len(tokens)):
        strings = split(tokens[: t + 1])
        if strings[-1]:
            found = []
            for restart in range(learned.restarts):
                begin = dense(start_of(t, learned, restart), 0)
                found.append(fitted([s for s in strings if s], begin, learned.iterations, PAD))
            model, likelihood = max(found, key=lambda f: f[1])
        if model is None:
            rows.append(torch.tensor([0.0, *[1 / (V - 2)] * (V - 2), 0.0], dtype=torch.float64))
        else:
            rows.append(predicted(strings[-1], model))
        likelihoods.append(likelihood)
    return torch.stack(rows), likelihoods


def sequence(seed: int, length: int, symbols: int = V - 2, separators: float = 0.2) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, symbols + 1, (length,), generator=generator)
    tokens[torch.rand(length, generator=generator) < separators] = SEPARATOR
    return tokens.tolist()


def padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


@pytest.mark.parametrize(
    "options", [{}, {"states": 2}, {"states": 7, "iterations": 4}, {"iterations": 0}, {"restarts": 3, "iterations": 5}]
)
def test_equals_the_plain_form_at_every_position(options: dict[str, Any]) -> None:
    learned = learner(seed=3, **options)
    rows = [sequence(1, 26), sequence(2, 20, symbols=2), [SEPARATOR, SEPARATOR, 1, 2, SEPARATOR, SEPARATOR, 1]]
    found, likelihoods = learned.read(padded(rows))
    for i, tokens in enumerate(rows):
        wanted, wanted_likelihoods = plain(tokens, learned)
        torch.testing.assert_close(found[i, : len(tokens)], wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            likelihoods[i, : len(tokens)], torch.tensor(wanted_likelihoods, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )


def test_the_references_setting_equals_the_plain_form() -> None:
    learned = learner(states=12)
    tokens = sequence(5, 40, separators=0.1)
    found, likelihoods = learned.read(torch.tensor([tokens]))
    single, single_likelihoods = learner(states=12, precision="float32").read(torch.tensor([tokens]))
    for t in (4, 38):
        model, likelihood = fitted([s for s in split(tokens[: t + 1]) if s], dense(start_of(t, learned), 0), 10, PAD)
        assert likelihoods[0, t].item() == pytest.approx(likelihood, rel=1e-10)
        assert single_likelihoods[0, t].item() == pytest.approx(likelihood, rel=1e-3)
        torch.testing.assert_close(found[0, t], predicted(split(tokens[: t + 1])[-1], model), rtol=0, atol=1e-9)
        torch.testing.assert_close(single[0, t].double(), found[0, t], rtol=0, atol=1e-2)


def test_the_plain_forms_likelihood_is_a_sum_over_paths() -> None:
    n, strings = 3, [[1, 2, 1], [3]]
    a, b, pi = dense(random_start(torch.tensor([0]), n, V, 0, 0, torch.float64), 0)
    possible, _ = reachable(n, torch.device("cpu"))
    wanted = 0.0
    for string in strings:
        total = 0.0
        for path in itertools.product(range(n * n), repeat=len(string)):
            p = pi[path[0]].item()
            for t, (edge, symbol) in enumerate(zip(path, string, strict=True)):
                p *= b[edge, symbol].item() * bool(possible[min(t, len(possible) - 1)].flatten()[edge])
                p *= a[path[t - 1], edge].item() if t else 1.0
            total += p
        wanted += math.log(total)
    assert fitted(strings, (a, b, pi), 0, PAD)[1] == pytest.approx(wanted, rel=1e-12)


def test_the_start_is_a_model_over_the_edges_of_an_automaton() -> None:
    n = 4
    a, b, pi = dense(random_start(torch.tensor([7]), n, V, 0, 0, torch.float64), 0)
    for table in (a, b, pi[None]):
        torch.testing.assert_close(table.sum(1), torch.ones(len(table), dtype=torch.float64))
    for j, i, k, m in itertools.product(range(n), repeat=4):
        # From the edge (i, j) to the edge (k, m).
        large = a[j * n + i, m * n + k] > 10 * a[j * n + i].min()
        assert bool(large) <= (k == j and i != j)
    assert (pi > EPS).nonzero().flatten().tolist() == [n, 2 * n, 3 * n]


def test_states_are_reached_breadth_first_five_a_step() -> None:
    possible, edge = reachable(12, torch.device("cpu"))
    ends = [sorted(set(at.nonzero()[:, 0].tolist())) for at in possible]
    assert ends == [[1, 2, 3, 4, 5], list(range(11)), list(range(12)), list(range(12))]
    assert possible[0].nonzero()[:, 1].unique().tolist() == [0]
    assert torch.equal(possible[-1], edge)


def test_rounds_raise_the_likelihood_and_a_tolerance_ends_them() -> None:
    tokens = torch.tensor([sequence(8, 30)])
    likelihoods = [learner(iterations=n).read(tokens)[1] for n in (0, 1, 4, 16, 400)]
    for before, after in itertools.pairwise(likelihoods):
        # The floor that every round adds costs a little.
        assert (after[:, 1:] > before[:, 1:] - 1e-2).all()
    ended = learner(iterations=400, tolerance=1e-3).read(tokens)[1]
    assert (ended[:, 1:] > likelihoods[-1][:, 1:] - 0.5).all()
    assert not torch.equal(ended, likelihoods[-1])
    # A rise of more than this there never is: two rounds, since the first has nothing to be compared with.
    assert torch.equal(learner(iterations=400, tolerance=1e6).read(tokens)[1], learner(iterations=2).read(tokens)[1])


def test_restarts_keep_the_likeliest_at_each_position() -> None:
    tokens = torch.tensor([sequence(9, 25)])
    alone = learner(iterations=3).read(tokens)[1]
    best, likelihood = learner(iterations=3, restarts=4).read(tokens)
    assert (likelihood >= alone).all()
    assert (likelihood > alone).any()
    assert torch.equal(learner(iterations=3, restarts=4)(tokens), best)
    assert not torch.equal(learner(iterations=3, restarts=4, seed=1)(tokens), best)


@pytest.mark.parametrize("columns", [1, 60, 1 << 20])
def test_the_size_of_the_batches_changes_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = padded([sequence(11, 30), sequence(12, 21)])
    whole = learner()(tokens)
    monkeypatch.setattr(baum_welch, "COLUMNS", columns)
    torch.testing.assert_close(learner()(tokens), whole, rtol=0, atol=1e-11)


def test_fits_of_several_sequences_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a batch mixes sequences with strings of unlike lengths."""
    rows = [sequence(13, 30), sequence(14, 30, separators=0.05), sequence(15, 17, separators=0.5)]
    alone = [learner()(torch.tensor([row]))[0] for row in rows]

    def mixed(self: BaumWelchLearner, reading: baum_welch.Reading) -> Any:
        row, position = reading.symbol.nonzero(as_tuple=True)
        order = reading.string[row, position].argsort(stable=True)
        yield row[order], position[order]

    monkeypatch.setattr(BaumWelchLearner, "batches", mixed)
    for found, wanted, row in zip(learner()(padded(rows)), alone, rows, strict=True):
        torch.testing.assert_close(found[: len(row)], wanted, rtol=0, atol=1e-11)


def test_after_a_separator_the_fit_before_says_how_strings_begin() -> None:
    tokens = torch.tensor([[1, 2, SEPARATOR, SEPARATOR, 1, 3, SEPARATOR]])
    found = learner()(tokens)[0]
    assert torch.equal(found[2], found[3])
    assert found[2].argmax() == 1


def test_a_pad_ends_a_string_and_predicts_nothing() -> None:
    found = learner()(torch.tensor([[1, 2, PAD, 1, PAD, PAD]]))[0]
    wanted = learner()(torch.tensor([[1, 2, SEPARATOR, 1]]))[0]
    assert torch.equal(found[[0, 1, 3]], wanted[[0, 1, 3]])
    assert (found[[2, 4, 5]] == 0).all()


def test_without_a_separator_a_row_is_one_string() -> None:
    tokens = [1, 2, 3, 1, 2]
    found = learner(separator_id=None)(torch.tensor([tokens]))
    assert torch.equal(found, learner()(torch.tensor([tokens])))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_small_batches(shape: tuple[int, int]) -> None:
    assert learner()(torch.ones(shape, dtype=torch.int64)).shape == (*shape, V)


def test_registered_with_the_references_settings() -> None:
    model: Any = create_model("baum-welch", vocabulary=Vocabulary(V, pad_id=PAD, separator_id=SEPARATOR))
    assert (model.states, model.iterations, model.restarts, model.tolerance) == (12, 10, 1, 0.0)
    tokens = torch.tensor([[1, 2, 3, SEPARATOR, 1, 2]])
    assert model(tokens).dtype == torch.float32
    assert model(tokens)[0, -1].argmax() == 3


@pytest.mark.slow
def test_is_as_good_as_trigrams_on_random_languages() -> None:
    dataset = create_dataset("dfa", held_out=500)
    vocabulary = Vocabulary.of(dataset)
    scores = {
        name: evaluate(create_model(name, vocabulary=vocabulary), dataset, ["accuracy", "tvd"], limit=20, resamples=2)
        for name in ("baum-welch", "ngram-3")
    }
    assert scores["baum-welch"]["accuracy"].value > scores["ngram-3"]["accuracy"].value - 0.02
    assert scores["baum-welch"]["tvd"].value < scores["ngram-3"]["tvd"].value


def test_bad_options() -> None:
    for name, value in (("states", 1), ("iterations", -1), ("restarts", 0), ("tolerance", -1.0)):
        with pytest.raises(InputError, match=name):
            learner(**{name: value})
