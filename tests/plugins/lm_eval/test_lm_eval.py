"""lm-eval as it is installed, in a process of its own, on a model and tasks of the zoo; and the adapter by itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import icll_zoo_lm_eval
from icll_zoo import (
    IGNORED,
    InputError,
    Vocabulary,
    create_dataset,
    create_model,
    evaluate,
    generate,
    load_model,
    save_model,
)

pytest.importorskip("lm_eval.api.model")

LANGUAGES = {"languages": 4, "held_out": 9, "strings_min": 3, "strings_max": 5, "length_max": 12}


@pytest.fixture(scope="module")
def dataset() -> Any:
    return create_dataset("dfa", **LANGUAGES)


@pytest.fixture(scope="module")
def saved(dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that prefers some tokens clearly, as a source."""
    torch.manual_seed(0)
    model = create_model("lstm", vocabulary=Vocabulary.of(dataset), d_model=16, n_layers=1, init_std=0.5)
    folder = save_model(model, tmp_path_factory.mktemp("saved") / "model", data={"dataset": "dfa"})
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks as the verb writes them."""
    folder = tmp_path_factory.mktemp("tasks") / "dfa"
    words = [f"data.{key}={value}" for key, value in LANGUAGES.items()]
    group = click.Group()
    icll_zoo_lm_eval.register_commands(cli=group)
    CliRunner().invoke(group, ["to-lm-eval", "dfa", str(folder), *words], catch_exceptions=False)
    return folder


def adapter(source: str, **options: Any) -> Any:
    from icll_zoo_lm_eval.model import ZooModel

    return ZooModel(source, **options)


def ask(adapter: Any, kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """What the adapter answers to requests with these arguments."""
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]
    return getattr(adapter, kind)(requests)


def run_lm_eval(tmp_path: Path, module: str, *words: str) -> dict[str, Any]:
    """The results that a process of lm-eval writes."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, "run", "--model", "icll-zoo", "--output_path", str(tmp_path / "out"), *words],
        capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_process_of_lm_eval(dataset: Any, saved: str, tasks: Path, tmp_path: Path) -> None:
    """`lm_eval --model icll-zoo --tasks FILE,FILE`: both figures are those of the zoo's own evaluation."""
    files = ",".join(str(tasks / f"{name}.yaml") for name in ("perplexity", "next-token"))
    results = run_lm_eval(tmp_path, "lm_eval", "--model_args", f"source={saved}", "--tasks", files)
    found = results["results"]["icll-zoo-dfa-perplexity"]["token_perplexity,none"]
    wanted = evaluate(load_model(saved), dataset, ["cross-entropy"])["cross-entropy"].value
    assert math.log(found) == pytest.approx(wanted, abs=1e-6)
    assert results["n-samples"]["icll-zoo-dfa-perplexity"]["effective"] == 9
    assert results["config"]["model_architecture"] == "baselines:lstm"

    batch = dataset.batch("test", 0, 9, None)
    predicted = load_model(saved)(batch.tokens).argmax(-1)
    last = batch.valid.sum(1) - 1
    rows = torch.arange(9)
    legal = dataset.oracle(batch)[rows, last, predicted[rows, last]] > 0
    assert results["results"]["icll-zoo-dfa-next-token"]["acc,none"] == pytest.approx(legal.double().mean().item())


@pytest.mark.slow  # lm-eval reads all of its own tasks first
def test_tasks_by_name(saved: str, tasks: Path, tmp_path: Path) -> None:
    """`python -m icll_zoo_lm_eval` with --include_path: what releases without entry points need for that."""
    results = run_lm_eval(
        tmp_path, "icll_zoo_lm_eval", "--model_args", f"source={saved}", "--batch_size", "4",
        "--include_path", str(tasks), "--tasks", "icll-zoo-dfa-perplexity", "--limit", "3",
    )  # fmt: skip
    found = results["results"]["icll-zoo-dfa-perplexity"]["token_perplexity,none"]
    wanted = evaluate(load_model(saved), create_dataset("dfa", **LANGUAGES), ["cross-entropy"], limit=3)
    assert math.log(found) == pytest.approx(wanted["cross-entropy"].value, abs=1e-6)


def test_rolling_scores_what_the_loss_has(dataset: Any, saved: str) -> None:
    batch = dataset.batch("test", 0, 9, None)
    rows = [row[ok] for row, ok in zip(batch.tokens, batch.valid, strict=True)]
    last = [targets[len(row) - 1 :][:1] for targets, row in zip(batch.targets, rows, strict=True)]
    texts = [" ".join(dataset.vocabulary[i] for i in [*row, *end]) for row, end in zip(rows, last, strict=True)]
    logs = load_model(saved)(batch.tokens).double().log_softmax(-1)
    kept = batch.targets != IGNORED
    wanted = logs.gather(2, batch.targets.clamp(min=0)[..., None])[..., 0].masked_fill(~kept, 0).sum(1)
    for batch_size in (1, 4, "auto"):
        found = ask(adapter(saved, batch_size=batch_size), "loglikelihood_rolling", *((text,) for text in texts))
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted, rtol=1e-6, atol=1e-6)
    assert ask(adapter(saved), "loglikelihood_rolling", ("",), ("a",)) == [0.0, 0.0]


def test_loglikelihood(dataset: Any, saved: str) -> None:
    model, vocabulary = load_model(saved), dataset.vocabulary
    requests = [("a b | c", " d e"), ("a b | c", " d"), ("a", "b | c d e"), ("", "a b"), ("a b | c", " d e")]
    found = ask(adapter(saved, batch_size=2), "loglikelihood", *requests)
    for (context, continuation), (total, greedy) in zip(requests, found, strict=True):
        ids = [vocabulary.index(word) for word in f"{context or '|'} {continuation}".split()]
        logs, first = model(torch.tensor([ids])).double().log_softmax(-1)[0], len((context or "|").split())
        wanted = sum(logs[i - 1, ids[i]].item() for i in range(first, len(ids)))
        assert total == pytest.approx(wanted, abs=1e-5)
        assert greedy == all(int(logs[i - 1].argmax()) == ids[i] for i in range(first, len(ids)))
    best = vocabulary[int(model(torch.tensor([[1, 2]]))[0, -1].argmax())]
    assert ask(adapter(saved), "loglikelihood", ("a b", f" {best}"))[0][1] is True
    assert ask(adapter(saved), "loglikelihood", ("a b", "")) == [(0.0, True)]


def test_generation(dataset: Any, saved: str) -> None:
    model, made = load_model(saved), adapter(saved, batch_size=2)
    prompts = ["a b", "c | d e", "f"]
    given = [(p, {"until": [], "max_gen_toks": 6}) for p in prompts]
    words = []
    for prompt, text in zip(prompts, ask(made, "generate_until", *given), strict=True):
        ids = [dataset.vocabulary.index(word) for word in prompt.split()]
        row = generate(model, torch.tensor([ids]), 6, greedy=True)[0, len(ids) :]
        words.append([dataset.vocabulary[i] for i in row.tolist()])
        assert text.split() == words[-1]
    stop = words[0][2]
    (text,) = ask(made, "generate_until", ("a b", {"until": [stop, "zz"], "max_gen_toks": 6}))
    assert text.split() == words[0][: words[0].index(stop)]
    hot = {"until": [], "max_gen_toks": 30, "do_sample": True, "temperature": 5.0}
    sampled = [("a b", {**hot, "seed": seed}) for seed in (1, 1, 2)]
    one, same, other = ask(adapter(saved, batch_size=1), "generate_until", *sampled)
    assert one == same != other


def test_a_learner_and_a_model_without_texts() -> None:
    """Probabilities instead of logits, and ids instead of texts."""
    from icll_zoo_lm_eval.model import ZooModel

    learner = create_model("ngram-2", vocabulary=Vocabulary(5, None, 0, 4))
    text = "1 2 3 1 2 3 1 2"
    ids = torch.tensor([[int(word) for word in text.split()]])
    wanted = learner(ids)[0, :-1].double().log().gather(1, ids[0, 1:, None]).sum().item()
    assert ask(ZooModel(model=learner), "loglikelihood_rolling", (text,)) == [pytest.approx(wanted)]


def test_faults_in_one_line(saved: str) -> None:
    from icll_zoo_lm_eval.model import ZooModel

    made = adapter(saved)
    with pytest.raises(InputError, match="'ab' is no token"):
        ask(made, "loglikelihood_rolling", ("ab c",))
    with pytest.raises(InputError, match="'repetition_penalty', which is not known"):
        ask(made, "generate_until", ("a", {"until": ["|"], "repetition_penalty": 2.0}))
    with pytest.raises(InputError, match="needs a source"):
        ZooModel()
    alone = ZooModel(model=create_model("lstm", 5, d_model=8, n_layers=1))
    with pytest.raises(InputError, match="no separator"):
        ask(alone, "loglikelihood", ("", "1"))


def test_the_model_is_one_of_lm_evals(saved: str) -> None:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import get_model, model_registry

    from icll_zoo_lm_eval.known import make_known

    make_known()
    make_known()  # twice is once
    kind = get_model("icll-zoo")
    assert issubclass(kind, LM)
    made = kind.create_from_arg_string(f"source={saved}", {"batch_size": "auto", "device": None})
    assert isinstance(made.model, nn.Module)
    assert "hf" in model_registry  # lm-eval's own are still there
