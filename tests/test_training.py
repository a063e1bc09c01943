"""The trainer: what an update is, what a run writes, and that a killed run ends with the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import icll_zoo
from icll_zoo import training
from icll_zoo.data import IGNORED
from icll_zoo.errors import EnvironmentFault, InputError, Interrupted
from icll_zoo.evaluation import loss_sum
from icll_zoo.optimizers import create_optimizer
from icll_zoo.progress import Progress
from icll_zoo.run import Run
from icll_zoo.run_folder import first_difference, locked
from icll_zoo.training import Trainer, train
from icll_zoo.updates import Ahead
from icll_zoo.zoo import Vocabulary, Zoo

SMALL: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 6,
    "model": {"d_model": 16, "n_layers": 1},
    "data": {"languages": 40, "held_out": 8, "length_max": 9},
    "train": {"batch_size": 4, "threads": 1},
}


def description(folder: Path, **changes: Any) -> Run:
    from icll_zoo.run import merge

    return Run.parse(merge(SMALL, {"output": str(folder), **changes}))


def bits(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder whose bits the description determines."""
    kept = [folder / "run.json", folder / "metrics.jsonl", *folder.rglob("*.safetensors")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in kept}
    return {**found, "config": (folder / "model" / "config.json").read_bytes()}


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_a_function_of_its_description(tmp_path: Path) -> None:
    first = train(description(tmp_path / "a"), quiet=True)
    torch.rand(3)  # the state of the global generator must not matter, nor be changed
    state = torch.get_rng_state()
    second = train(description(tmp_path / "b"), quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert first["hash"] == second["hash"]
    other = train(description(tmp_path / "c", seed=1), quiet=True)
    assert other["hash"] != first["hash"]
    assert bits(tmp_path / "c")["model/model.safetensors"] != bits(tmp_path / "a")["model/model.safetensors"]


def test_what_a_run_writes(tmp_path: Path) -> None:
    result = train(description(tmp_path / "run", steps=12, metrics=["accuracy"]), quiet=True)
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [10, 12]
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == list(range(1, 13))
    assert all(0 <= line["validation_accuracy"] <= 1 for line in validated)
    best = min(validated, key=lambda line: line["validation_loss"])
    assert (result["best_step"], result["validation_loss"]) == (best["step"], best["validation_loss"])
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 3
    model = icll_zoo.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]


def test_the_best_model_is_saved_and_not_the_last(tmp_path: Path) -> None:
    # A learning rate that ruins what the first update found: the best is an early step.
    changes = {"optimizer": {"lr": 3.0, "clip": None}, "schedule": {"name": "constant", "warmup": 0.0}}
    result = train(description(tmp_path / "run", **changes), quiet=True)
    assert result["best_step"] < result["steps"]
    from icll_zoo.evaluation import mean_loss

    model = icll_zoo.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    dataset = icll_zoo.create_dataset("dfa", **SMALL["data"])
    assert mean_loss(model, dataset, "validation") == pytest.approx(result["validation_loss"], rel=1e-6)


def trainer(folder: Path, **changes: Any) -> Trainer:
    from icll_zoo.zoo import default_zoo

    made = Trainer(description(folder, **changes).resolve(default_zoo()), default_zoo())
    made.progress = Progress(6, quiet=True)
    made.write = lambda values: None  # type: ignore[method-assign]
    return made


def test_accumulation_is_the_mean_over_all_targets(tmp_path: Path) -> None:
    """Two micro-batches make the update of the batch of both, whatever their lengths."""
    no_order = {"data": {"buckets": 1}, "model": {"dropout": 0.0, "attention_dropout": 0.0}}
    whole = trainer(tmp_path, train={"batch_size": 4}, **no_order)
    parts = trainer(tmp_path, train={"batch_size": 2, "accumulate": 2}, **no_order)
    for _ in range(2):
        whole.update()
        parts.update()
    for a, b in zip(whole.updates.model.parameters(), parts.updates.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_update_is_a_step_on_the_mean_loss(tmp_path: Path) -> None:
    """Written out by hand: plain SGD on the mean cross-entropy, with the gradient's norm clipped."""
    made = trainer(
        tmp_path,
        model={"dropout": 0.0, "attention_dropout": 0.0},
        optimizer={"name": "sgd", "lr": 0.5, "weight_decay": 0.0, "clip": 0.1},
        schedule={"name": "constant", "warmup": 0.0},
    )
    made.updates.optimizer.param_groups[0]["momentum"] = 0.0
    before = [p.detach().clone() for p in made.updates.model.parameters()]
    batch = made.dataset.batch("train", 0, 4, 0)
    loss = nn.functional.cross_entropy(made.updates.model(batch.tokens).flatten(0, 1), batch.targets.flatten())
    gradients = torch.autograd.grad(loss, list(made.updates.model.parameters()), allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    made.update()
    for old, new, gradient in zip(before, made.updates.model.parameters(), gradients, strict=True):
        step = torch.zeros_like(old) if gradient is None else gradient * 0.1 / norm * 0.5
        torch.testing.assert_close(new, old - step, rtol=1e-4, atol=1e-6)


def test_the_average_of_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, train={"ema": 0.9})
    assert made.updates.ema is not None
    expected = [p.detach().clone() for p in made.updates.model.parameters()]
    for _ in range(3):
        made.update()
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, made.updates.model.parameters(), strict=True)]
    for e, p in zip(expected, made.updates.ema.module.parameters(), strict=True):
        torch.testing.assert_close(p, e)


@pytest.mark.parametrize(("prefix", "after"), [(True, 1.0), (False, 0.5 * (1 + math.cos(math.pi / 10)))])
def test_the_schedule(prefix: bool, after: float, tmp_path: Path) -> None:
    """Linear to the peak, cosine to the end; the reference counts the cosine from the first update."""
    made = trainer(
        tmp_path, steps=100, optimizer={"lr": 1.0}, schedule={"warmup_prefix": prefix, "min_lr": 0.0, "warmup_lr": 0.0}
    )

    def rate(step: int) -> float:
        made.updates.schedule.step_update(step)
        return made.updates.optimizer.param_groups[0]["lr"]

    assert rate(0) == 0
    assert rate(5) == pytest.approx(0.5)
    assert rate(10) == pytest.approx(after)
    assert rate(99) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_leaves_out_vectors_unless_told(decay_all: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, optimizer={"decay_all": decay_all})
    decayed = {
        id(p) for group in made.updates.optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]
    }
    vectors = [p for p in made.updates.model.parameters() if p.ndim < 2]
    assert vectors
    assert all((id(p) in decayed) == decay_all for p in vectors)
    assert all(id(p) in decayed for p in made.updates.model.parameters() if p.ndim >= 2)


@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_leaves_out_what_a_mixer_names(decay_all: bool, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.proj = nn.Linear(d_model, d_model)
            self.kernel = nn.Parameter(torch.zeros(d_model, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x) * self.kernel.sum(-1)

        def no_weight_decay(self) -> set[str]:
            return {"kernel"}

    zoo = Zoo.discover()
    zoo.register("mixer", "named", Named)
    made = create_optimizer(
        {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "decay_all": decay_all, "betas": [0.9, 0.99], "eps": 1e-8},
        model := zoo.create_model("named", d_model=8, n_layers=2),
    )
    still = {id(p) for group in made.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in still and parameter.ndim > 1}
    assert names == {"blocks.0.mixer.kernel", "blocks.1.mixer.kernel"}


@pytest.mark.parametrize("changes", [{"train": {"precision": "bf16"}}, {"train": {"ema": 0.5, "accumulate": 2}}])
def test_variants_run(changes: dict[str, Any], tmp_path: Path) -> None:
    assert train(description(tmp_path / "run", **changes), quiet=True)["validation_loss"] < 3.1


class Explodes(nn.Module):
    """Gives a NaN for every batch after the third in training."""

    def __init__(self, vocab_size: int, at: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        self.at, self.calls = at, 0

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        bad = self.training and self.calls == self.at
        return self.table(tokens) * (math.nan if bad else 1.0)


@pytest.fixture
def zoo() -> Zoo:
    made = Zoo.discover()
    made.register("architecture", "explodes", Explodes)
    return made


def test_a_nan_stops_before_it_reaches_the_weights(zoo: Zoo, tmp_path: Path) -> None:
    run = description(tmp_path / "run", architecture="explodes", model={})
    run = Run.parse({**run.model_dump(), "model": {}, "train": {"batch_size": 4, "checkpoint_every": 1}})
    with pytest.raises(EnvironmentFault, match=r"loss nan at step 3, train batch 2 .*step-2") as caught:
        train(run, zoo=zoo, quiet=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "result.json").exists()
    # The batch that gave the NaN is left out on request, and the rest goes on.
    skipping = Run.parse(
        {**run.model_dump(), "output": str(tmp_path / "skip"), "train": {"batch_size": 4, "on_nan": "skip"}}
    )
    result = train(skipping, zoo=zoo, quiet=True)
    assert (result["skipped"], result["steps"]) == (1, 6)


def fused(made: Trainer) -> Trainer:
    """The same as on a GPU: an optimizer that leaves out an update by itself, and nobody who asks at every step."""
    made.updates.optimizer = create_optimizer(made.description["optimizer"], made.updates.model, fused=True)
    made.updates.deferred = True
    return made


def test_an_update_that_is_not_finite_is_left_out_on_the_device(zoo: Zoo, tmp_path: Path) -> None:
    changed = {"architecture": "explodes", "model": {}, "train": {**SMALL["train"], "validate_every": 100}}
    run = Run.parse({**SMALL, **changed, "output": str(tmp_path / "run")})
    run = run.model_copy(update={"train": run.train.model_copy(update={"checkpoint_every": 100})})
    made = fused(Trainer(run.resolve(zoo), zoo))
    made.progress, made.log = Progress(6, quiet=True), None
    for step in range(5):
        before = [p.detach().clone() for p in made.updates.model.parameters()]
        made.update()  # the third gives NaNs
        same = all(torch.equal(a, b) for a, b in zip(before, made.updates.model.parameters(), strict=True))
        assert same == (step == 2)
        assert all(bool(p.isfinite().all()) for p in made.updates.model.parameters())
    assert all(bool(v.isfinite().all()) for state in made.updates.optimizer.state.values() for v in state.values())
    # It is read where a line of the log, a validation or a checkpoint is due, before anything is saved.
    left = made.window.first_bad.clone()
    with pytest.raises(EnvironmentFault, match=r"loss nan at step 3, train batch 2 .*no checkpoint yet"):
        made.look()
    made.settings["on_nan"] = "skip"
    made.window.first_bad, made.window.bad = left, torch.ones_like(made.window.bad)
    made.look()
    assert made.skipped == 1
    made.update()
    assert (made.skipped, made.live.step) == (1, 6)
    assert math.isfinite(made.train_loss)


def test_nothing_is_read_from_the_device_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fused(trainer(tmp_path))
    works = [made.ahead.make(step) for step in range(3)]
    read: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *a, o=original, n=name: read.append(n) or o(self, *a))
    for step, work in enumerate(works):
        made.window.count(step, made.updates.make(step, work), work.targets)
    monkeypatch.undo()
    assert read == []
    assert made.window.sums[3] == 3


def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    plain, early = trainer(tmp_path), trainer(tmp_path)
    early.ahead = Ahead(early.ahead.make, ahead=True)
    for _ in range(4):
        plain.update()
        early.update()
    early.ahead.settle()
    early.ahead.close()
    for a, b in zip(plain.updates.model.parameters(), early.updates.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_buckets_pad_little_and_leave_the_loss_of_a_pass() -> None:
    model = icll_zoo.create_model("transformer", vocab_size=20, d_model=16, n_layers=1, max_length=1000).eval()
    found = {}
    for buckets in (1, 16):
        dataset = icll_zoo.create_dataset("dfa", languages=512, held_out=8, buckets=buckets)
        batches = [dataset.batch("train", k, 16, 0) for k in range(32)]
        tokens = sum(int(batch.valid.sum()) for batch in batches)
        with torch.no_grad():
            total = sum(loss_sum(model(batch.tokens), batch.targets).item() for batch in batches)
        found[buckets] = (tokens, total / tokens, 1 - tokens / sum(batch.valid.numel() for batch in batches))
    assert found[1][0] == found[16][0]
    assert found[1][1] == pytest.approx(found[16][1], rel=1e-6)
    assert found[16][2] < 0.1 < found[1][2]


def test_another_run_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    train(description(tmp_path / "run"), quiet=True)
    before = bits(tmp_path / "run")
    with pytest.raises(InputError, match=r"differs in model\.options\.d_model: 16 there, 32 here"):
        train(description(tmp_path / "run", model={"d_model": 32}), quiet=True)
    assert bits(tmp_path / "run") == before
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b: None there, 2 here"


def test_a_folder_in_use_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(EnvironmentFault, match="another process is training"):
        train(description(tmp_path / "run"), quiet=True)


def test_trackers_hear_the_run(tmp_path: Path) -> None:
    train(description(tmp_path / "run", train={"trackers": ["tensorboard"]}), quiet=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "validation_loss", "tokens_per_second"} <= set(events.Tags()["tensors"])
    assert len(events.Tensors("validation_loss")) == 6


def test_a_tracker_that_raises_stops_nothing(zoo: Zoo, tmp_path: Path) -> None:
    from icll_zoo import hookimpl, plugins

    class Broken:
        @hookimpl
        def on_log(self, run: object, step: int, values: object) -> None:
            raise RuntimeError("disk on fire")

    plugin = plugins.Plugin(name="broken", distribution="test", version="1", module="test")
    plugins.register_all(plugin, Broken())
    zoo.plugins.append(plugin)
    with pytest.warns(UserWarning, match="tracker 'broken' failed and is left out: disk on fire"):
        result = train(description(tmp_path / "run", train={"trackers": ["broken"]}), zoo=zoo, quiet=True)
    assert result["steps"] == 6


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of its compiler
def test_compiled_equals_plain(tmp_path: Path) -> None:
    plain = trainer(tmp_path, model={"dropout": 0.0, "attention_dropout": 0.0})
    compiled = trainer(tmp_path, model={"dropout": 0.0, "attention_dropout": 0.0}, train={"compile": True})
    compiled.updates.forward = torch.compile(
        compiled.updates.model, backend="eager"
    )  # the real one takes a C++ compiler
    for _ in range(2):
        plain.update()
        compiled.update()
    for a, b in zip(plain.updates.model.parameters(), compiled.updates.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_the_compiler_in_a_mode_of_its_own(tmp_path: Path) -> None:
    """For real, through a whole run; shapes repeat, so that it compiles few. Without a GPU there are no CUDA graphs."""
    shared: dict[str, Any] = {"model": {"dropout": 0.0, "attention_dropout": 0.0}}
    plain = train(description(tmp_path / "plain", train={"pad_to": 32}, **shared), quiet=True)
    found = train(
        description(tmp_path / "run", train={"pad_to": 32, "compile": "reduce-overhead"}, **shared), quiet=True
    )
    assert found["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-4)


def test_cuda_graphs_take_no_accumulation(tmp_path: Path) -> None:
    from icll_zoo.zoo import default_zoo

    settings = {"compile": "reduce-overhead", "accumulate": 2}
    with pytest.raises(InputError, match=r"train\.accumulate=2: a CUDA graph writes"):
        description(tmp_path, train=settings).resolve(default_zoo())
    assert description(tmp_path, train={**settings, "compile": True}).resolve(default_zoo())


@pytest.mark.parametrize("multiple", [7, 64, 4096])
def test_padding_to_a_multiple_changes_shapes_alone(tmp_path: Path, multiple: int) -> None:
    """Dropout and all; no more is padded than the longest sequence there may be."""
    plain = trainer(tmp_path, train={"precision": "fp64"})
    padded = trainer(tmp_path, train={"precision": "fp64", "pad_to": multiple})
    longest = plain.dataset.max_length
    for update in range(3):
        (tokens, targets, _), *_ = padded.ahead.make(update).parts
        least = plain.ahead.make(update).parts[0][0].size(1)
        assert tokens.size(1) == min(-(-least // multiple) * multiple, longest)
        assert (tokens[:, least:] == padded.dataset.pad_id).all()
        assert (targets[:, least:] == IGNORED).all()
        plain.update()
        padded.update()
    for a, b in zip(plain.updates.model.parameters(), padded.updates.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert plain.tokens == padded.tokens  # padding is not counted


def test_the_hash_of_a_run_without_padding_is_what_it_was_before_there_was_any(tmp_path: Path) -> None:
    from icll_zoo.run import Resolved
    from icll_zoo.zoo import default_zoo

    now = description(tmp_path).resolve(default_zoo())
    older = {key: value for key, value in now.description["train"].items() if key != "pad_to"}
    assert Resolved({**now.description, "train": older}, tmp_path).hash == now.hash
    assert description(tmp_path, train={"pad_to": 8}).resolve(default_zoo()).hash != now.hash


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no run\.json"):
        training.resume(tmp_path)
    (tmp_path / "run.json").write_text('{"hash": "x", "description": {"train": {}}}')
    with pytest.raises(InputError, match="was changed"):
        training.resume(tmp_path)


def test_strict_resume_refuses_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = description(tmp_path / "run", train={"strict_resume": True, "checkpoint_every": 2})
    stop = Interrupted("stop", 143)

    def interrupt(self: Trainer) -> None:
        if self.live.step == 4:
            raise stop
        original(self)

    original = Trainer.update
    monkeypatch.setattr(Trainer, "update", interrupt)
    with pytest.raises(Interrupted):
        train(run, quiet=True)
    monkeypatch.setattr(Trainer, "update", original)
    monkeypatch.setattr(training, "environment", lambda: {"torch": "0.1"})
    with pytest.raises(InputError, match=r"torch .* -> 0\.1.*strict_resume"):
        train(run, quiet=True)
    monkeypatch.undo()
    assert train(run, quiet=True)["steps"] == 6


def test_batches_hold_no_target_of_padding_or_separators() -> None:
    dataset = icll_zoo.create_dataset("dfa", **SMALL["data"])
    batch = dataset.batch("train", 0, 8, 0)
    counted = batch.targets != IGNORED
    assert not (counted & ~batch.valid).any()
    assert not (batch.targets[counted] == Vocabulary.of(dataset).separator_id).any()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Copied in by hand: one line that names it, and nothing in the folder changes."""
    import shutil

    train(description(tmp_path / "other", seed=5), quiet=True)
    train(description(tmp_path / "run"), quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "lock"}
    with pytest.raises(InputError, match="step-6' is of another run than"):
        train(description(tmp_path / "run"), quiet=True)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != "lock"} == before


def test_what_a_kill_left_of_the_very_first_file_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    left = tmp_path / "run" / ".run.json.123.tmp"
    left.write_text('{"hash": "')
    train(description(tmp_path / "run", steps=1), quiet=True)
    assert not left.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".mine.tmp").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        train(description(tmp_path / "other", steps=1), quiet=True)
