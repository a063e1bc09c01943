"""Generation that stays within a language, from Python and from the command line."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from torch import nn

from icll_zoo import InputError, create_dataset, create_model, generate, save_model
from icll_zoo.cli import run
from icll_zoo.generation import encode
from icll_zoo.zoo import Vocabulary
from icll_zoo_dfa.constraint import LegalNext
from icll_zoo_dfa.language import LETTERS, VOCABULARY, Language

# Two states: a or b from 0, only b back; so texts such as ab|bb|a.
SMALL = Language(3, {3: {"a": 7, "b": 7}, 7: {"b": 3}})
ONLY_C = Language(0, {0: {"c": 0}})
SEPARATOR_ID = VOCABULARY.index("|")


def ids(text):
    return torch.tensor([encode(text, VOCABULARY)])


def legal_after(language, text):
    """What the language's own words say may follow: letters that continue the last string, or a separator behind it."""
    *whole, last = text.split("|")
    if not all(words and language.states_of(words) is not None for words in whole):
        return set()
    if language.states_of(last) is None:
        return set()
    return {c for c in LETTERS if language.states_of(last + c) is not None} | ({"|"} if last else set())


@pytest.mark.parametrize("language", [SMALL, ONLY_C, create_dataset("dfa", held_out=1).language("test", 0)])
def test_what_may_follow_every_short_text(language):
    constraint = language.constraint()
    letters = sorted({c for edges in language.delta.values() for c in edges})[:3]
    for length in range(1, 5):
        for text in map("".join, product([*letters, "|"], repeat=length)):
            allowed, _ = constraint.step(ids(text), constraint.init_state(1))
            assert {VOCABULARY[i] for i in allowed[0].nonzero().flatten().tolist()} == legal_after(language, text), text


def test_reading_in_pieces_is_reading_at_once_and_leaves_the_state_as_it_was():
    text = ids("ab|bb|a")
    constraint = SMALL.constraint()
    state = constraint.init_state(1)
    whole, _ = constraint.step(text, state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    _, after = constraint.step(text[:, :3], state)
    assert all(torch.equal(state[name], before[name]) for name in before)
    pieces, _ = constraint.step(text[:, 3:], after)
    assert torch.equal(whole, pieces)


def holds(language, row):
    """Whether token ids are strings of the language, none of them empty but perhaps the open one at the end."""
    *whole, last = "".join(VOCABULARY[i] for i in row.tolist()).split("|")
    return all(whole) and all(language.states_of(word) is not None for word in [*whole, last])


def model_of(dataset):
    torch.manual_seed(0)
    model = create_model("lstm", vocabulary=Vocabulary.of(dataset), d_model=16, n_layers=1)
    nn.init.normal_(model.embedding.weight, std=1.0)
    return model


@pytest.mark.parametrize("settings", [{"greedy": True}, {"seed": 1}, {"seed": 1, "top_p": 0.5}])
def test_an_untrained_model_speaks_every_language_of_its_own(settings):
    dataset = create_dataset("dfa", held_out=8)
    languages = [dataset.language("test", i) for i in range(8)]
    prompts = [sample.text[: 3 + 2 * i] for i, sample in enumerate(dataset.samples("test", 8))]
    model = model_of(dataset)
    read = [ids(prompt)[0] for prompt in prompts]
    made = generate(model, read, 60, constraint=dataset.constraint("test", range(8)), exclude=[0], **settings)
    free = generate(model, read, 60, exclude=[0], **settings)
    assert all(map(holds, languages, made))
    # Left to itself it repeats one symbol, which the first language happens to allow for ever.
    assert [holds(*pair) for pair in zip(languages, free, strict=True)] == [True] + [False] * 7


def test_one_language_holds_for_all_prompts_and_other_numbers_are_refused():
    model = model_of(create_dataset("dfa"))
    made = generate(model, [[1], [2, 2], [2]], 20, seed=0, constraint=SMALL.constraint(), exclude=[0, SEPARATOR_ID])
    for row in made:
        assert holds(SMALL, row)
    with pytest.raises(InputError, match="2 languages for 3 prompts"):
        generate(model, [[1], [2, 2], [2]], 2, constraint=LegalNext([SMALL, ONLY_C]))
    with pytest.raises(InputError, match="at least one language"):
        LegalNext([])


def test_an_illegal_prompt_is_named():
    with pytest.raises(InputError, match="follows prompt 2 "):
        generate(model_of(create_dataset("dfa")), [[1], [3]], 2, constraint=SMALL.constraint())


def test_the_dataset_refuses_what_it_does_not_have():
    dataset = create_dataset("dfa", held_out=2)
    with pytest.raises(InputError, match="has languages 0 to 1, not 2"):
        dataset.constraint("test", [0, 2])
    with pytest.raises(InputError, match="endless"):
        dataset.constraint("train", [0])


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    save_model(model_of(create_dataset("dfa")), tmp_path / "model")
    lines = [{"text": "ab|bb", **SMALL.to_json()}, {"text": "cc", **ONLY_C.to_json()}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"local-dir:{tmp_path / 'model'}", f"data.file={tmp_path / 'two.jsonl'}"


def said(capsys, *words):
    assert run(["generate", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_generate_within_the_languages_of_a_file(source, capsys):
    model, file = source
    words = ["--tokens", "12", "--constraint", "dfa", file]
    rows = said(capsys, model, "--prompt", "ab|b", "--prompt", "b", *words)
    for row in rows:
        assert SMALL.states_of(row.replace(" ", "").split("|")[-1]) is not None
    assert len(rows) == 2
    assert said(capsys, model, "--prompt", "c", *words, "--index", "1") == ["c" + " c" * 12]
    each = said(capsys, model, "--prompt", "cc", "--prompt", "ab", *words, "--index", "1", "--index", "0")
    assert each[0] == "cc" + " c" * 12
    assert SMALL.states_of(each[1].replace(" ", "")) is not None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--constraint", "dfa", "data.fil=x"], "unknown option 'fil'"),
        (["--constraint", "dfa", "FILE", "--index", "2"], "has languages 0 to 1, not 2"),
        (["--constraint", "dfa", "FILE", "--index", "1"], "nothing that may be generated follows prompt 1"),
        (["--constraint", "nothing-such"], "unknown dataset"),
        (["--index", "1"], "give --constraint DATASET"),
        (["FILE"], "give --constraint DATASET"),
        (["model.x=1"], "unknown key 'model'"),
    ],
)
def test_bad_constraints_end_in_one_line(source, words, says, capsys):
    model, file = source
    words = [file if word == "FILE" else word for word in words]
    assert run(["generate", model, "--prompt", "ab", *words]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
