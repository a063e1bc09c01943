"""`icll-zoo bench`: only what passes its checks is timed, side by side, and what it says of memory is so."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from icll_zoo import bench, cli, create_model
from icll_zoo.errors import InputError
from icll_zoo.run import Training
from icll_zoo.zoo import default_zoo

MB = 1_000_000
HUNGRY = '''
import torch
from icll_zoo import register_mixer


@register_mixer("hungry", license="Apache-2.0", paper="unpublished")
class Hungry(torch.nn.Module):
    """The mean of what came before, and 40 million bytes while it thinks."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        torch.ones(40_000_000, dtype=torch.uint8, device=x.device)
        return self.out(x.cumsum(1) / torch.arange(1, x.size(1) + 1, dtype=x.dtype, device=x.device)[:, None])
'''
LEAKS = '''
import torch
from icll_zoo import register_mixer


@register_mixer("leaks", license="Apache-2.0", paper="unpublished")
class Leaks(torch.nn.Module):
    """Looks one token ahead."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.out(x.roll(-1, 1))
'''
SMALL = ["train.batch_size=2", "train.threads=1", "model.d_model=32", "model.n_layers=2"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the command says of two models, one of them a script's, and where it wrote its table."""
    folder = tmp_path_factory.mktemp("bench")
    script = folder / "hungry.py"
    script.write_text(HUNGRY)
    words = ["bench", "rnn", "hungry", *SMALL, "--length", "24", "--what", "step"]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[Any] = []
        patch.setattr("icll_zoo.cli.bench.emit", lines.append)
        code = cli.run([*words, "--rounds", "2", "--load", str(script), "--output", str(folder / "table"), "--json"])
    assert code == 0
    return lines[0], folder / "table"


def test_every_model_has_a_row_for_everything_that_is_timed(measured: tuple[dict[str, Any], Path]) -> None:
    rows = measured[0]["rows"]
    assert [(row["what"], row["name"]) for row in rows] == [("step", "rnn"), ("step", "hungry")]
    for row in rows:
        assert (row["batch_size"], row["length"], row["precision"], row["rounds"]) == (2, 24, "fp32", 2)
        assert row["tokens_per_s_low"] <= row["tokens_per_s"] <= row["tokens_per_s_high"]
        # Of two rounds the median of the rates and the rate of the median differ by their spread.
        assert row["tokens_per_s_low"] * 0.5 <= 2 * 24 / row["seconds"] <= row["tokens_per_s_high"] * 2
        assert row["mfu"] is None
    assert rows[0]["times"] == 1.0
    model = create_model("rnn", d_model=32, n_layers=2)
    assert rows[0]["parameters"] == sum(p.numel() for p in model.parameters())
    assert measured[0]["facts"]["threads"] == 1


def test_memory_is_what_the_model_takes(measured: tuple[dict[str, Any], Path]) -> None:
    memory = {row["name"]: row["peak_memory"] for row in measured[0]["rows"]}
    # More than 32 MiB, which glibc never takes from its heap, whose holes would count too.
    assert 40 * MB <= memory["hungry"] < 78 * MB
    assert 4 * 4 * measured[0]["rows"][0]["parameters"] <= memory["rnn"] < 30 * MB


def test_the_table_holds_the_rows_with_all_their_digits(measured: tuple[dict[str, Any], Path]) -> None:
    said, path = measured
    assert said["written"] == [f"{path}.csv", f"{path}.parquet"]
    with Path(f"{path}.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [float(row["tokens_per_s"]) for row in found] == [row["tokens_per_s"] for row in said["rows"]]


def test_what_fails_its_checks_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "leaks.py"
    script.write_text(LEAKS)
    code = cli.run(["bench", "leaks", *SMALL, "--load", str(script), "--output", str(tmp_path / "table")])
    said = capsys.readouterr()
    assert code == 1
    assert "error: 'leaks' fails its checks, so it is not timed: leaks: " in said.err
    assert said.out == ""
    assert not list(tmp_path.glob("table*"))


def test_generation_counts_the_tokens_that_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "refuse_what_fails", lambda *_: None)  # the kit itself is not what is looked at here
    sizes = {"d_model": 16, "n_layers": 1}
    settings = Training(batch_size=3, threads=1, precision="bf16")
    rows, _ = bench.bench(
        ["transformer-rope"], [40], ["generate"], model=sizes, train=settings, new_tokens=5, rounds=1, zoo=default_zoo()
    )
    (row,) = rows
    assert row["tokens_per_s"] * row["seconds"] == pytest.approx(3 * 5)


def test_a_length_beyond_the_default_is_made_room_for() -> None:
    for name, longest in (("transformer", 5000), ("gla", 5000), ("transformer", 8)):
        options = bench.model_options(default_zoo(), name, {}, longest)
        assert create_model(name, **options).zoo_spec.options["max_length"] >= longest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["glaa"], "unknown model 'glaa' (did you mean 'gla'?)"),
        (["train.batch_size=2"], "nothing to time"),
        (["gla", "train.accumulate=2"], "a benchmark has no key 'train.accumulate'"),
        (["gla", "steps=2"], "a benchmark has no key 'steps'"),
        (["gla", "train.batch_size=0"], "wrong value for train.batch_size in the benchmark"),
        (["gla", "train=5"], "wrong value for train in the benchmark"),
        (["gla", "model.foo=2"], "unknown option 'foo' in model 'gla'"),
        (["gla", "train.precision=tf32", "train.device=cpu"], "train.precision=tf32 needs a CUDA device"),
        (["ngram-3"], "'ngram-3' has no parameters, so there is no step to time (--what forward)"),
        (["gla", "--length", "0"], "Invalid value for '--length'"),
        (["gla", "--output", "/nowhere/table"], "no folder '/nowhere' for --output"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()[-1]
    assert "checking" not in printed.err


def test_nothing_is_timed_no_times() -> None:
    with pytest.raises(InputError, match="a benchmark of rounds 0"):
        bench.bench(["gla"], rounds=0)


@pytest.mark.slow
def test_the_peers_of_transformers_take_part(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    peers = str(Path(__file__).parent.parent / "benchmarks" / "peers.py")
    names = ["transformers-llama", "transformers-mamba", "transformers-mamba-2", "transformers-rwkv-4"]
    sizes = ["train.batch_size=1", "train.threads=1", "model.d_model=64", "model.n_layers=2"]
    words = ["bench", *names, *sizes, "--length", "16", "--rounds", "1", "--what", "forward", "--load", peers]
    assert cli.run([*words, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == names
