"""Continuing sequences: with a state or without, from logits or from probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from mixers import zoo_of_tests
from torch import nn

from icll_zoo.errors import EnvironmentFault, InputError
from icll_zoo.generation import can_step, decode, encode, generate, row_seeds, stream
from icll_zoo.zoo import Vocabulary, default_zoo

VOCAB = 7
PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


def create(name="sum", **options):
    torch.manual_seed(0)
    model = zoo_of_tests().create_model(name, VOCAB, **options)
    if name != "counter":  # spread the logits: at initialisation every token is about as likely
        nn.init.normal_(model.embedding.weight, std=1.0)
    return model


class WithoutState(nn.Module):
    """The same model, its state hidden."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.reads = []

    def forward(self, tokens):
        self.reads.append(tokens.size(1))
        return self.model(tokens)


@pytest.mark.parametrize("name", ["sum", "uniform"])
@pytest.mark.parametrize(
    "settings", [{"greedy": True}, {"seed": 3}, {"seed": 3, "temperature": 0.5, "top_k": 3}, {"seed": 3, "top_p": 0.8}]
)
def test_with_a_state_and_without_give_the_same_tokens(name, settings):
    model = create(name, d_model=16, n_layers=2, mlp="rwkv", positions="learned")
    hidden = WithoutState(model)
    assert can_step(model)
    assert not can_step(hidden)
    made = generate(model, PROMPT, 30, **settings)
    assert torch.equal(made, generate(hidden, PROMPT, 30, **settings))
    assert hidden.reads == list(range(3, 33))
    assert made.shape == (2, 33)
    assert torch.equal(made[:, :3], PROMPT)


@pytest.mark.parametrize("name", ["transformer", "transformer-rope", "lstm", "ngram-head", "transformer-ngram"])
def test_the_registered_mixers_go_on_from_a_state_as_they_read_everything(name):
    torch.manual_seed(0)
    sizes = {"d_model": 32} if name == "transformer-ngram" else {"d_model": 32, "n_layers": 2}
    model = default_zoo().create_model(name, VOCAB, **sizes)
    nn.init.normal_(model.embedding.weight, std=1.0)
    assert can_step(model)
    made = generate(model, PROMPT, 30, seed=0)
    assert torch.equal(made, generate(WithoutState(model), PROMPT, 30, seed=0))
    assert len(made[:, 3:].unique()) > 1


def test_greedy_is_the_argmax_of_reading_everything():
    model = create(d_model=16, n_layers=1)
    made = generate(model, PROMPT, 10, greedy=True)
    assert torch.equal(model.eval()(made[:, :-1]).argmax(-1)[:, 2:], made[:, 3:])


def test_a_seed_fixes_the_tokens_and_leaves_the_global_generator_alone():
    model = create(d_model=16, n_layers=1)
    torch.manual_seed(9)
    before = torch.get_rng_state()

    def made(seed):
        # Hot, since a tied head mostly repeats the last token, and then two seeds may well say the same.
        return generate(model, PROMPT, 40, seed=seed, temperature=50.0)

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    assert not torch.equal(made(None), made(None))
    assert torch.equal(before, torch.get_rng_state())


def test_tokens_are_drawn_as_often_as_they_are_probable():
    class Fixed(nn.Module):
        output = "probabilities"
        row = torch.tensor([0.5, 0.0, 0.3, 0.2])

        def forward(self, tokens):
            return self.row.expand(*tokens.shape, 4)

    made = generate(Fixed(), torch.zeros(20_000, 1, dtype=torch.int64), 1, seed=0)[:, 1]
    shares = made.bincount(minlength=4) / len(made)
    # Four standard deviations of a share of 20,000 draws are at most 0.0141.
    torch.testing.assert_close(shares, Fixed.row, rtol=0, atol=0.0141)
    assert shares[1] == 0


def test_a_learner_that_knows_nothing_yet_draws_from_every_allowed_token():
    made = generate(create("counter"), torch.ones(4000, 1, dtype=torch.int64), 1, seed=0, exclude=[0, 6])[:, 1]
    shares = made.bincount(minlength=VOCAB) / len(made)
    assert shares[0] == shares[6] == 0
    # Four standard deviations of a share of 1/5 of 4,000 draws.
    torch.testing.assert_close(shares[1:6], torch.full((5,), 0.2), rtol=0, atol=0.026)


def test_excluded_tokens_are_never_made_and_may_be_in_the_prompt():
    made = generate(create(d_model=16, n_layers=1), PROMPT, 60, seed=0, exclude=[1, 5])
    assert not torch.isin(made[:, 3:], torch.tensor([1, 5])).any()


def test_the_mode_is_restored_and_dropout_is_off():
    model = create(d_model=16, n_layers=1, dropout=0.9)
    model.train()
    one = generate(model, PROMPT, 20, greedy=True)
    assert model.training
    assert torch.equal(one, generate(model, PROMPT, 20, greedy=True))


def test_stream_gives_the_same_columns_and_faults_at_once():
    model = create(d_model=16, n_layers=1)
    columns = list(stream(model, PROMPT, 5, seed=1))
    assert [c.shape for c in columns] == [(2, 1)] * 5
    assert torch.equal(torch.cat(columns, 1), generate(model, PROMPT, 5, seed=1)[:, 3:])
    with pytest.raises(InputError):
        stream(model, PROMPT, 0)


@pytest.mark.parametrize(
    ("prompt", "settings", "reason"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, "prompt is empty"),
        (torch.zeros(0, 3, dtype=torch.int64), {}, "prompt is empty"),
        (torch.tensor([1, 2]), {}, "batch, length"),
        (torch.ones(1, 2), {}, "token ids"),
        (torch.tensor([[1, 7]]), {}, "token id 7, and the model has ids 0 to 6"),
        (torch.tensor([[-1, 2]]), {}, "token id -1"),
        (PROMPT, {"n": 0}, "cannot generate 0"),
        (PROMPT, {"temperature": 0.0}, "greedy"),
        (PROMPT, {"temperature": math.nan}, "temperature nan"),
        (PROMPT, {"temperature": math.inf}, "temperature inf"),
        (PROMPT, {"top_k": 0}, "top_k 0"),
        (PROMPT, {"top_p": 0.0}, "top_p 0.0 is not in"),
        (PROMPT, {"top_p": 1.5}, "top_p 1.5"),
        (PROMPT, {"top_p": math.nan}, "top_p nan"),
        (PROMPT, {"seed": -1}, "seed -1"),
        (PROMPT, {"seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
        ([], {}, "there is no prompt"),
        ([[1], []], {}, "prompt 2 is empty"),
        ([[1], [2, 7]], {}, "prompt 2 has token id 7"),
        ([[1], [0.5]], {}, "token ids"),
        ([[1], ["a"]], {}, "a list of token ids, not"),
        ([[[1]]], {}, "one dimension"),
        (PROMPT, {"exclude": [9]}, "token id 9"),
        (PROMPT, {"exclude": range(VOCAB)}, "every token is excluded"),
    ],
)
def test_bad_requests(prompt, settings, reason):
    with pytest.raises(InputError, match=reason):
        generate(create(d_model=16, n_layers=1), prompt, **{"n": 3, **settings})


RAGGED = [[1, 2], [6], [3, 3, 2], [5, 4], [6, 1, 2, 3, 4, 5, 6, 1], [1]]


class Steps(nn.Module):
    """The same model, the batch sizes of its steps noted."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.state_grows = model.state_grows
        self.sizes = []

    def init_state(self, batch_size, device, dtype):
        return self.model.init_state(batch_size, device, dtype)

    def step(self, tokens, state):
        self.sizes.append(tuple(tokens.shape))
        return self.model.step(tokens, state)


@pytest.mark.parametrize("name", ["sum", "uniform", "stateless", "counter"])
@pytest.mark.parametrize(
    "settings", [{"greedy": True}, {"temperature": 5.0}, {"temperature": 9.0, "top_p": 0.9, "exclude": [0]}]
)
def test_each_prompt_of_a_batch_goes_on_as_it_does_alone(name, settings):
    sizes = {} if name == "counter" else {"d_model": 16, "n_layers": 2, "mlp": "rwkv", "positions": "learned"}
    model = create(name, **sizes).double()
    made = generate(model, RAGGED, 25, seed=11, **settings)
    for prompt, row, seed in zip(RAGGED, made, row_seeds(11, len(RAGGED)).tolist(), strict=True):
        alone = generate(model, torch.tensor([prompt]), 25, seed=seed, **settings)
        assert torch.equal(row, alone[0])
        assert row[: len(prompt)].tolist() == prompt
    if "greedy" not in settings:
        assert len({tuple(row[-25:].tolist()) for row in made}) == len(RAGGED)


def recurrent_mixers():
    """Every installed mixer and hybrid; all but a few are for .ci/run."""
    quick = ("transformer", "transformer-rope", "lstm", "transformer-ngram", "gla", "mamba")
    for entry in default_zoo().list("model"):
        if entry.kind == "mixer" and entry.preset_of is None:
            yield pytest.param(entry.name, marks=[] if entry.name in quick else [pytest.mark.slow])


@pytest.mark.parametrize("name", list(recurrent_mixers()))
def test_the_registered_mixers_read_prompts_of_different_lengths(name):
    """Joining rows at different places is right only if a state's rows do not depend on each other."""
    torch.manual_seed(0)
    entry = default_zoo().entry("model", name)
    sizes = {"d_model": 64} if entry.backbone.get("layers") else {"d_model": 64, "n_layers": 2}
    model = default_zoo().create_model(name, VOCAB, tie=False, **sizes).double()
    nn.init.normal_(model.embedding.weight, std=1.0)
    nn.init.normal_(model.head.weight, std=0.2)
    prompts = [*RAGGED, [1] + [2, 3, 4, 5, 6] * 14]  # past 64 tokens, where chunks end
    made = generate(model, prompts, 16, seed=4)
    for prompt, row, seed in zip(prompts, made, row_seeds(4, len(prompts)).tolist(), strict=True):
        assert torch.equal(row, generate(WithoutState(model), torch.tensor([prompt]), 16, seed=seed)[0])
    assert len({tuple(row[-16:].tolist()) for row in made}) == len(prompts)


def test_rows_with_constant_states_go_on_together_and_those_with_caches_by_length():
    prompts = [[1, 2], [3], [4, 5], [6, 1, 2]]
    constant = Steps(create("sum", d_model=16, n_layers=1))
    generate(constant, prompts, 3, seed=0)
    assert constant.sizes == [(2, 2), (1, 1), (1, 3), (4, 1), (4, 1)]
    grows = Steps(create("uniform", d_model=16, n_layers=1))
    generate(grows, prompts, 3, seed=0)
    assert grows.sizes == [(2, 2), (1, 1), (1, 3)] + [(2, 1), (1, 1), (1, 1)] * 2


def test_equal_prompts_in_one_batch_go_on_differently_and_so_do_near_seeds():
    model = create(d_model=16, n_layers=1)
    rows = {tuple(row.tolist()) for row in generate(model, [[1, 2]] * 50, 30, seed=0, temperature=5.0)}
    rows |= {tuple(generate(model, [[1, 2]], 30, seed=seed, temperature=5.0)[0].tolist()) for seed in range(1, 50)}
    assert len(rows) == 99


def test_a_list_of_seeds_gives_one_to_each_row():
    model = create(d_model=16, n_layers=1)
    made = generate(model, PROMPT[:1].expand(3, -1), 20, seed=[8, 9, 8])
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[1:2], generate(model, PROMPT[:1], 20, seed=9))


class Parity:
    """Allows only tokens of the other parity than the last one, until `limit` tokens were read, and then none."""

    def __init__(self, limit=10**6):
        self.limit = limit
        self.read = []

    def init_state(self, batch_size):
        return {"count": torch.zeros(batch_size, dtype=torch.int64)}

    def step(self, tokens, state):
        self.read.append(tuple(tokens.shape))
        count = state["count"] + tokens.size(1)
        other = (torch.arange(VOCAB) + tokens[:, -1:]) % 2 == 1
        return other & (count < self.limit)[:, None], {"count": count}


@pytest.mark.parametrize("name", ["sum", "uniform", "stateless", "counter"])
@pytest.mark.parametrize("settings", [{"greedy": True}, {"seed": 5}, {"seed": 5, "top_p": 0.3, "top_k": 2}])
def test_a_constraint_holds_whatever_the_model_wants(name, settings):
    model = create(name, **({} if name == "counter" else {"d_model": 16, "n_layers": 1}))
    constraint = Parity()
    for prompt, row in zip(RAGGED, generate(model, RAGGED, 30, constraint=constraint, **settings), strict=True):
        assert len(row) == len(prompt) + 30
        assert ((row[len(prompt) - 1 : -1] + row[len(prompt) :]) % 2 == 1).all()
    assert {k for _, k in constraint.read[4:]} == {1}  # after the prompts it reads single tokens


def test_a_constraint_cuts_the_distribution_and_nothing_else():
    class Fixed(nn.Module):
        output = "probabilities"
        row = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.05, 0.15, 0.2])

        def forward(self, tokens):
            return self.row.expand(*tokens.shape, VOCAB)

    made = generate(Fixed(), torch.full((20_000, 1), 2), 1, seed=0, constraint=Parity())[:, 1]
    shares = made.bincount(minlength=VOCAB) / len(made)
    # Of 1, 3 and 5 remain 0.2 : 0 : 0.15; four standard deviations of 20,000 draws.
    torch.testing.assert_close(shares, torch.tensor([0, 4 / 7, 0, 0, 0, 3 / 7, 0]), rtol=0, atol=0.0141)
    assert shares[3] == 0


def test_a_constraint_that_leaves_nothing_says_where():
    model = create(d_model=16, n_layers=1)
    with pytest.raises(InputError, match="nothing that may be generated follows prompt 2 "):
        generate(model, [[1], [1, 2, 3, 4]], 5, constraint=Parity(limit=4))
    with pytest.raises(InputError, match="follows prompt 2 and 2 further tokens"):
        generate(model, [[1], [1, 2]], 5, seed=0, constraint=Parity(limit=4))
    with pytest.raises(InputError, match="follows prompt 1 "):
        generate(model, [[1]], 5, constraint=Parity(), exclude=[0, 2, 4, 6])


def test_a_constraint_of_another_size_is_told_so():
    class Wrong(Parity):
        def step(self, tokens, state):
            allowed, state = super().step(tokens, state)
            return allowed[:, 1:], state

    with pytest.raises(InputError, match=r"bool of shape \[2, 6\].*\[2, 7\] is wanted"):
        generate(create(d_model=16, n_layers=1), PROMPT, 2, constraint=Wrong())


def test_broken_weights_are_the_machines_fault():
    model = create(d_model=16, n_layers=1)
    with torch.no_grad():
        model.embedding.weight[2] = math.nan
    with pytest.raises(EnvironmentFault, match="not finite"):
        generate(model, PROMPT, 3)


WORDS = ["a", "b", "|", "ab", "the"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a b | a", [0, 1, 2, 0]),
        (" ab\tthe\n", [3, 4]),
        ("ab|ba", [3, 2, 1, 0]),
        ("the", [4]),
        ("", []),
        (" ", []),
    ],
)
def test_encode(text, ids):
    assert encode(text, WORDS) == ids


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a zz b", "word 2 of the text, 'zz', is no token of this model (it knows 'a' 'b' '|' 'ab' 'the')"),
        ("ab?a", "character 3 of the text, '?', is no token"),
        ("a thee", "did you mean 'the'?"),
        ("a \x1b", "word 2 of the text, '\\x1b'"),
    ],
)
def test_encode_names_what_it_does_not_know(text, says):
    with pytest.raises(InputError) as caught:
        encode(text, WORDS)
    assert says in str(caught.value)


def test_decode_undoes_encode():
    assert decode(encode("a b | the", WORDS), WORDS) == "a b | the"
    with pytest.raises(InputError, match="no token has id 5"):
        decode([0, 5], WORDS)
    with pytest.raises(InputError, match="no token has id -1"):
        decode([-1], WORDS)


def test_a_vocabulary_is_kept_on_the_model():
    model = zoo_of_tests().create_model("sum", vocabulary=Vocabulary(5, WORDS), d_model=8, n_layers=1)
    made = generate(model, torch.tensor([encode("a b", WORDS)]), 4, seed=0)
    assert len(decode(made[0].tolist(), WORDS).split()) == 6
