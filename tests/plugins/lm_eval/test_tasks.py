"""The tasks that a dataset is written as; lm-eval itself is not needed for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

import icll_zoo_lm_eval
from icll_zoo import IGNORED, Batch, InputError, create_dataset
from icll_zoo_lm_eval.writing import check_targets

SMALL = {"languages": 4, "held_out": 70, "strings_min": 3, "strings_max": 5, "length_max": 12}


def run(*words: str) -> Result:
    group = click.Group()
    icll_zoo_lm_eval.register_commands(cli=group)
    return CliRunner().invoke(group, ["to-lm-eval", *words])


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_say_what_the_dataset_has(tmp_path: Path) -> None:
    words = [f"data.{key}={value}" for key, value in SMALL.items()]
    done = run("dfa", str(tmp_path / "tasks"), *words, "--name", "mine")
    assert done.output.splitlines() == [
        f"wrote mine-{name} to {tmp_path / 'tasks' / name}.yaml" for name in ("perplexity", "next-token")
    ]
    assert 'task: "mine-perplexity"' in (tmp_path / "tasks" / "perplexity.yaml").read_text()
    data = create_dataset("dfa", **SMALL)
    texts, following = (documents(tmp_path / "tasks" / f"{name}.jsonl") for name in ("perplexity", "next-token"))
    assert len(texts) == len(following) == 70
    batch = data.batch("test", 0, 70, None)
    truth = data.oracle(batch)
    for row, (document, choice) in enumerate(zip(texts, following, strict=True)):
        length = int(batch.valid[row].sum())
        ids = [data.vocabulary.index(word) for word in document["text"].split()]
        assert ids == [*batch.tokens[row, :length].tolist(), int(batch.targets[row, length - 1])]
        assert document["scored"] == int((batch.targets[row] != IGNORED).sum())
        assert document["group"] == int(batch.group[row])
        assert choice["text"] == document["text"].rpartition(" ")[0]
        assert choice["choices"] == list(data.vocabulary)
        assert choice["may_follow"] == [i for i in range(20) if truth[row, length - 1, i] > 0]


def test_an_endless_split_and_a_limit(tmp_path: Path) -> None:
    run("dfa", str(tmp_path / "a"), "--split", "train", "--limit", "66")
    assert len(documents(tmp_path / "a" / "perplexity.jsonl")) == 66
    again = run("dfa", str(tmp_path / "b"), "--split", "train", "--limit", "3")
    assert again.exit_code == 0
    assert documents(tmp_path / "b" / "perplexity.jsonl") == documents(tmp_path / "a" / "perplexity.jsonl")[:3]


def test_faults_in_one_line(tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        done = run(*words)
        assert isinstance(done.exception, InputError)
        return str(done.exception)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "it is there" in refused("dfa", str(tmp_path / "full"), "data.languages=2")
    assert "endless" in refused("dfa", str(tmp_path / "a"), "--split", "train")
    assert "keys begin with data." in refused("dfa", str(tmp_path / "b"), "model.d_model=3")
    assert "not on every next token" in refused("mqar", str(tmp_path / "c"), "--limit", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_targets_that_a_text_cannot_carry() -> None:
    """Rows of 4, 3 and 1 tokens; 0 is the pad, 9 the separator."""

    class Known:
        pad_id, separator_id = 0, 9

    tokens = torch.tensor([[1, 2, 9, 3], [4, 5, 6, 0], [7, 0, 0, 0]])
    targets = torch.tensor([[2, -100, 3, 8], [5, 6, 7, -100], [-100, -100, -100, -100]])
    valid = tokens != 0
    check_targets(Known(), Batch(tokens, targets, valid, torch.arange(3)))
    for row, column, value in ((0, 0, 3), (0, 0, -100), (0, 1, 9), (0, 3, 9), (1, 3, 5), (2, 1, 5), (1, 1, -100)):
        changed = targets.clone()
        changed[row, column] = value
        with pytest.raises(InputError, match="not on every next token"):
            check_targets(Known(), Batch(tokens, changed, valid, torch.arange(3)))


def test_without_lm_eval(tmp_path: Path) -> None:
    """In a process that cannot import it: tasks are written, and what evaluates them says what to install."""
    code = (
        "import sys, runpy; sys.modules['lm_eval'] = None\n"
        "import click, icll_zoo_lm_eval as plugin; group = click.Group(); plugin.register_commands(cli=group)\n"
        "group(sys.argv[1:], standalone_mode=False)\n"
        "runpy.run_module('icll_zoo_lm_eval', run_name='__main__')"
    )
    words = [sys.executable, "-c", code, "to-lm-eval", "dfa", str(tmp_path / "tasks"), "data.held_out=2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: lm-eval is not installed (pip install 'icll-zoo[lm-eval]')\n")
    assert len(list((tmp_path / "tasks").iterdir())) == 4


def test_registering_imports_nothing_heavy() -> None:
    code = (
        "import sys, click, icll_zoo_lm_eval as plugin; plugin.register_commands(cli=click.Group())\n"
        "print(sorted({'torch', 'lm_eval', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
