"""The core trainer: any registered architecture on any registered dataset, from one description.

A run is a pure function of its description. The k-th batch is a function of (data.seed, seed, k), a dropout mask one of
(seed, update, layer, row), and so nothing random has to be saved: weights, the optimizer's state and the number of
updates made are the whole state of a run, and one that was killed anywhere ends with the same bits. Here is the loop;
what an update does is in updates.py, and how several processes share a run in distributed.py.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icll_zoo import checkpoint, files, plugins
from icll_zoo.checkpoint import Checkpoint, Writer
from icll_zoo.data import Dataset
from icll_zoo.distributed import ALONE, Ranks, join, local_device
from icll_zoo.errors import EnvironmentFault, InputError, Interrupted, did_you_mean
from icll_zoo.evaluation import evaluate, mean_loss
from icll_zoo.flops import share_of_peak
from icll_zoo.machine import is_out_of_memory, machine, signals
from icll_zoo.progress import Progress
from icll_zoo.run import Resolved, Run, environment
from icll_zoo.run_folder import LOG, RESULT, RUN, check_folder, locked
from icll_zoo.updates import Ahead, Updates, prepare
from icll_zoo.weights import save_model
from icll_zoo.window import SUMS, Window
from icll_zoo.zoo import ModelSpec, Vocabulary, Zoo, default_zoo

ENDLESS_VALIDATION = 1024
"""Sequences of an endless validation split that are measured."""
FAULT = 255
"""What a process says instead of a signal's number when it cannot go on."""


def train(run: Run, *, zoo: Zoo | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train what a description says, and return what `result.json` holds.

    In a folder where the same description began before, an unfinished run goes on and a finished one is returned.
    Raises InputError before anything is written for a description that cannot run here, or for a folder that holds
    something else; EnvironmentFault for a disk, a lock, memory or a loss that is not finite; Interrupted after saving.
    """
    zoo = zoo or default_zoo()
    return execute(run.resolve(zoo), zoo, quiet)


def resume(folder: str | Path, *, zoo: Zoo | None = None, quiet: bool = False) -> dict[str, Any]:
    """Go on with the run that began in a folder; a finished one is returned. Raises as `train` does."""
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise InputError(f"no run in {str(folder)!r}: there is no {RUN}")
    written = files.read_json(folder / RUN, "description")
    if not isinstance(written, dict) or not isinstance(written.get("description"), dict):
        raise InputError(f"{str(folder / RUN)!r} is not the description of a run")
    resolved = Resolved(written["description"], folder)
    if resolved.hash != written.get("hash"):
        raise InputError(f"{str(folder / RUN)!r} was changed: its hash is another than it says")
    return execute(resolved, zoo or default_zoo(), quiet)


@dataclasses.dataclass
class LiveRun:
    """A run as trackers see it. description: resolved, plain data. step: updates made."""

    description: dict[str, Any]
    folder: Path
    zoo: Zoo
    step: int = 0


def execute(resolved: Resolved, zoo: Zoo, quiet: bool) -> dict[str, Any]:
    """Check everything, take the folder, and train to the end; every process of the run gets the result."""
    settings = resolved.training
    ranks = join(settings["device"])
    with machine(settings, local_device(settings["device"], ranks)) as device:

        def finished() -> dict[str, Any] | None:
            return ranks.gather(ranks.together(lambda: check_folder(resolved) if ranks.first else None))[0]

        if (result := finished()) is not None:
            return result
        trainer = None
        try:
            trainer = ranks.together(lambda: Trainer(resolved, zoo, ranks, device))
            with ExitStack() as stack:
                ranks.together(lambda: stack.enter_context(locked(resolved.output)) if ranks.first else None)
                if (result := finished()) is not None:  # another process may have been faster
                    return result
                return trainer.fit(quiet)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if trainer is None:
                place, hint = "while the model was made", "a smaller model.d_model or model.n_layers needs less"
            else:
                place = f"at step {trainer.live.step + 1}, {trainer.doing}"
                hint = "a smaller train.batch_size with train.accumulate gives the same updates"
            raise EnvironmentFault(f"out of memory on {device} {place}", hint=hint) from error


class Trainer:
    """One run in this process. Made without writing anything, so that a description that cannot run leaves no trace."""

    def __init__(self, resolved: Resolved, zoo: Zoo, ranks: Ranks = ALONE, device: torch.device | None = None) -> None:
        self.resolved, self.zoo, self.ranks = resolved, zoo, ranks
        self.settings: dict[str, Any] = resolved.training
        self.description: dict[str, Any] = {**resolved.description, "train": self.settings}
        self.folder, self.checkpoints = resolved.output, resolved.output / "checkpoints"
        self.device = device or torch.device(self.settings["device"])
        self.steps: int = self.description["steps"]
        self.seed: int = self.description["seed"]
        data = self.description["data"]
        self.dataset: Dataset = zoo.create_dataset(data["dataset"], **data["options"])
        self.metrics = {name: zoo.create_metric(name) for name in self.description["metrics"]}
        trackers = find_trackers(zoo, self.settings["trackers"])
        self.trackers = trackers if ranks.first else {}
        if self.dataset.size("validation") == 0:
            raise InputError(f"dataset {data['dataset']!r} has no validation split under these options")
        torch.manual_seed(self.seed)
        self.spec = ModelSpec(**self.description["model"])
        model = zoo.build_model(self.spec, Vocabulary.of(self.dataset))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"model {self.spec.architecture!r} has nothing to train")
        first = self.dataset.batch("train", 0, self.settings["batch_size"], self.seed)
        # Before the model is cut over processes: its operations are counted on the whole.
        self.share = share_of_peak(model, first.tokens.size(1), self.device, self.settings["precision"], ranks.size)
        self.updates = Updates(model, self.description, self.device, ranks)
        self.live = LiveRun(self.description, self.folder, zoo)
        self.best: dict[str, Any] = {"step": 0, "loss": math.inf, "metrics": {}}
        self.window = Window(self.device)
        self.shown = math.nan
        self.writer = Writer(self.checkpoints, self.settings["keep_last"])
        self.tokens, self.seconds, self.train_loss, self.skipped = 0, 0.0, math.nan, 0
        self.doing = "before the first batch"
        on_gpu = self.device.type == "cuda"
        self.ahead = Ahead(partial(prepare, self.dataset, self.settings, self.seed, ranks, on_gpu), on_gpu)

    # -- the loop ----------------------------------------------------------------------------------------------

    def fit(self, quiet: bool) -> dict[str, Any]:
        """Train from where the folder stands to the end; save the best model and the result."""
        with files.disk_faults("run folder", self.folder):
            return self._fit(quiet)

    def _fit(self, quiet: bool) -> dict[str, Any]:
        self.ranks.together(self.describe)
        self.restore()
        began = time.perf_counter() - self.seconds
        with ExitStack() as stack:
            noted = stack.enter_context(signals())
            stack.callback(self.ahead.close)
            self.progress = stack.enter_context(
                Progress(self.steps, self.live.step, quiet=quiet or not self.ranks.first, share=self.share)
            )
            self.log = (
                stack.enter_context((self.folder / LOG).open("a", encoding="utf-8")) if self.ranks.first else None
            )
            # The lock is given back when all is done here, so what is being written is waited for, whatever happens.
            stack.callback(self.writer.join)
            if self.live.step:
                self.progress.note(f"going on from step {self.live.step} of {self.steps}")
            self.tell("on_train_start")
            try:
                while self.live.step < self.steps:
                    self.update()
                    self.seconds = time.perf_counter() - began
                    improved = self.validate_if_due()
                    told = self.told(noted)
                    if improved or self.due("checkpoint_every") or told:
                        self.save()
                    if told and self.live.step < self.steps:
                        self.stop(told)
                result = self.finish()
            except BaseException as error:
                self.tell("on_train_end", error=error)
                raise
            self.tell("on_train_end", error=None)
        return result

    def due(self, every: str) -> bool:
        return self.live.step % self.settings[every] == 0 or self.live.step == self.steps

    def told(self, noted: list[int]) -> int:
        """The number of a signal that some process of the run was sent, or 0. Raises what went wrong in writing."""
        told = self.ranks.largest(FAULT if self.writer.failed else noted[0] if noted else 0)
        if self.writer.failed:
            self.writer.wait()
        if told == FAULT:
            raise SystemExit(EnvironmentFault.exit_code)  # the process that cannot go on says why
        return told

    def stop(self, number: int) -> None:
        """End here, as a signal asks. Raises Interrupted; SystemExit in all processes but the one that speaks."""
        self.writer.wait()
        if not self.ranks.first:
            raise SystemExit(128 + number)
        raise Interrupted(
            f"{signal.Signals(number).name} after step {self.live.step} of {self.steps}; "
            "saved, and the same command goes on",
            128 + number,
        )

    def update(self) -> None:
        """One optimizer step: the mean loss over the targets of all its micro-batches."""
        step = self.live.step
        self.doing = f"train batch {step * self.settings['accumulate']}"
        work = self.ahead.take(step)
        self.doing += f" of {' + '.join('x'.join(map(str, tokens.shape)) for tokens, *_ in work.parts)} tokens"
        self.window.count(step, self.updates.make(step, work), work.targets)
        self.live.step += 1
        self.tokens += work.read
        if not self.updates.deferred or any(map(self.due, ("log_every", "validate_every", "checkpoint_every"))):
            self.look()
        self.progress.advance(work.read, self.shown)
        if self.due("log_every"):
            loss, targets, norm, updates = self.window.sums.tolist()
            self.window.sums.zero_()
            if updates:
                self.train_loss = loss / max(targets, 1)
                self.write(
                    {
                        "loss": self.train_loss,
                        "lr": self.updates.optimizer.param_groups[0]["lr"],
                        "gradient_norm": norm / updates,
                        "tokens": self.tokens,
                    }
                )

    def look(self) -> None:
        """Read what the updates since the last look have left. Raises EnvironmentFault for one that is not finite."""
        self.shown, bad = self.window.read()
        if bad is None:
            return
        place = self.place_of(bad.update, bad.loss, bad.norm)
        if self.settings["on_nan"] == "skip":
            self.skipped += bad.updates
            self.progress.note(f"{place}: left out" + (f", and {bad.updates - 1} more" if bad.updates > 1 else ""))
            return
        self.writer.join()
        good = checkpoint.steps(self.checkpoints)
        last = (
            f"the last good checkpoint is {checkpoint.folder_of(self.checkpoints, good[-1])}"
            if good
            else "no checkpoint yet"
        )
        fault = EnvironmentFault(place, hint=f"{last}; a lower optimizer.lr, or train.on_nan=skip")
        # Every process has seen the same numbers, and one of them says so.
        raise fault if self.ranks.first else SystemExit(fault.exit_code)

    def place_of(self, update: int, loss: float, norm: float) -> str:
        """A line about a loss or a gradient that is not a number; its batch is made again to name what is in it."""
        self.ahead.settle()
        groups = self.ahead.make(update).groups.tolist()
        shown = ", ".join(map(str, groups[:4])) + (" ..." if len(groups) > 4 else "")
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        first = update * self.settings["accumulate"]
        return f"{what} at step {update + 1}, train batch {first} (languages or documents {shown})"

    def validate_if_due(self) -> bool:
        """Measure the validation split if it is time; whether it is better than ever."""
        if not self.due("validate_every"):
            return False
        self.ahead.settle()
        size = self.dataset.size("validation")
        limit = ENDLESS_VALIDATION if size is None else None
        model, doing, self.doing = self.updates.averaged, self.doing, "validation"
        shared: dict[str, Any] = {"device": self.device, "limit": limit, "ranks": self.ranks}
        with self.ranks.answering():
            loss = mean_loss(model, self.dataset, "validation", **shared)
            values = {"validation_loss": loss}
            if self.metrics:
                scores = evaluate(model, self.dataset, self.metrics, split="validation", resamples=1, **shared)
                values |= {f"validation_{name}": s.value for name, s in scores.items() if isinstance(s.value, float)}
        self.doing = doing
        self.write(values)
        shown = "  ".join(f"{name.removeprefix('validation_')} {value:.4f}" for name, value in values.items())
        self.progress.note(f"validation at step {self.live.step}: {shown}")
        if not loss < self.best["loss"]:
            return False
        self.best = {"step": self.live.step, "loss": loss, "metrics": values}
        return True

    def write(self, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the trackers. No times: the log of a resumed run is that of any other."""
        if self.log is None:
            return
        line = {"step": self.live.step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        self.log.write(files.canonical_json(line) + "\n")
        self.log.flush()
        speed = {"tokens_per_second": self.progress.speed}
        if self.progress.mfu is not None:
            speed["mfu"] = self.progress.mfu
        self.tell("on_log", step=self.live.step, values={**values, **speed})

    def tell(self, event: str, **about: Any) -> None:
        """Tell the trackers. One that raises is dropped with a warning and never stops the run."""
        for name, caller in list(self.trackers.items()):
            try:
                getattr(caller, event)(run=self.live, **about)
            except Exception as error:  # noqa: BLE001  a plugin may raise anything
                del self.trackers[name]
                warnings.warn(f"tracker {name!r} failed and is left out: {error}", stacklevel=2)

    # -- the folder --------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """Write the description, if this run begins here."""
        if self.ranks.first and not (self.folder / RUN).exists():
            written = {"hash": self.resolved.hash, "description": self.resolved.description}
            files.write_atomic(self.folder / RUN, files.pretty_json(written))

    def environment(self) -> dict[str, Any]:
        """What the bits of this run may depend on beside its description."""
        size = self.ranks.size
        return {**environment(), "processes": f"{size} ({self.settings['parallel']})" if size > 1 else 1}

    def save(self) -> None:
        """A checkpoint of everything that the rest of the run depends on; it is written beside the training."""
        with self.ranks.answering():
            tensors, plain = checkpoint.pack_optimizer(self.updates.optimizer)
            groups = {"model": checkpoint.pack_model(self.updates.model), "optimizer": tensors}
            if self.updates.ema is not None:
                groups["ema"] = checkpoint.pack_model(self.updates.ema.module)
        if self.log is None:
            return
        os.fsync(self.log.fileno())
        state = {
            "hash": self.resolved.hash,
            "optimizer": plain,
            "best": self.best,
            "window": dict(zip(SUMS, self.window.sums.tolist(), strict=True)),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
            "train_loss": self.train_loss if math.isfinite(self.train_loss) else None,
            "log_bytes": self.log.tell(),
            "environment": self.environment(),
        }
        # A copy, as the next update changes them in place.
        copies = {
            group: {name: t.to("cpu", copy=True).contiguous() for name, t in held.items()}
            for group, held in groups.items()
        }
        self.writer.save(Checkpoint(self.live.step, copies, finite_or_text(state)), {self.best["step"]})

    def restore(self) -> None:
        """Go back to the newest checkpoint that is whole, and cut the log there."""
        first = self.ranks.together(lambda: checkpoint.newest(self.checkpoints) if self.ranks.first else None)
        step = self.ranks.gather(None if first is None else first.step)[0]
        if step is not None:
            self.go_back(self.ranks.together(lambda: first or checkpoint.load(self.checkpoints, step)))
        self.ranks.together(lambda: self.tidy(0 if first is None else first.state["log_bytes"]))

    def go_back(self, found: Checkpoint) -> None:
        """Take over what a checkpoint holds."""
        state = found.state
        self.ranks.together(lambda: self.compare(found))
        checkpoint.unpack_model(self.updates.model, found.tensors["model"])
        if self.updates.ema is not None:
            checkpoint.unpack_model(self.updates.ema.module, found.tensors["ema"])
        checkpoint.unpack_optimizer(self.updates.optimizer, found.tensors["optimizer"], state["optimizer"])
        self.live.step = found.step
        self.best = {**state["best"], "loss": float(state["best"]["loss"])}
        self.window.sums.copy_(torch.tensor([state["window"][name] for name in SUMS], dtype=torch.float64))
        self.tokens, self.seconds, self.skipped = state["tokens"], state["seconds"], state["skipped"]
        self.train_loss = math.nan if state["train_loss"] is None else state["train_loss"]

    def tidy(self, log_bytes: int) -> None:
        """Clear what a kill left, and cut the log where the checkpoint was made."""
        if not self.ranks.first:
            return
        checkpoint.purge(self.checkpoints, self.settings["keep_last"], {self.best["step"]})
        log = self.folder / LOG
        if log.exists():
            if log.stat().st_size < log_bytes:
                raise InputError(f"{str(log)!r} is shorter than when the checkpoint was made: it was changed")
            os.truncate(log, log_bytes)

    def compare(self, found: Checkpoint) -> None:
        """Refuse a checkpoint of another run. Warn, or under strict_resume refuse, if its bits may become others."""
        if found.state.get("hash") != self.resolved.hash:
            folder = checkpoint.folder_of(self.checkpoints, found.step)
            raise InputError(f"checkpoint {str(folder)!r} is of another run than {str(self.folder / RUN)!r}")
        before, now = {"processes": 1, **found.state["environment"]}, self.environment()
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if not changed:
            return
        line = f"the run in {str(self.folder)!r} goes on under another {', '.join(changed)}"
        if self.settings["strict_resume"]:
            raise InputError(line, hint="train.strict_resume is set")
        if self.ranks.first:
            warnings.warn(f"{line}: its bits may differ from an uninterrupted run's", stacklevel=2)

    def finish(self) -> dict[str, Any]:
        """Save the best model in the published layout, and the result, last; every process gets the result."""
        self.ranks.together(self.writer.wait)
        if self.best["step"]:
            result = self.ranks.together(lambda: self.publish(None) if self.ranks.first else None)
        else:
            with self.ranks.answering():
                tensors = checkpoint.pack_model(self.updates.averaged)
            result = self.ranks.together(lambda: self.publish(tensors) if self.ranks.first else None)
        return self.ranks.gather(result)[0]

    def publish(self, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
        """Write `model/` and `result.json`. tensors: of the model, None for those of the best checkpoint."""
        if tensors is None:
            best = checkpoint.load(self.checkpoints, self.best["step"])
            tensors = best.tensors["ema" if self.updates.ema is not None else "model"]
        # Built anew, so that it is neither cut over processes nor of another precision than it is published in.
        model = self.zoo.build_model(self.spec, Vocabulary.of(self.dataset))
        checkpoint.unpack_model(model, tensors)
        metrics = {name: value for name, value in self.best["metrics"].items() if math.isfinite(value)}
        described = self.resolved.description
        training = {key: described[key] for key in ("steps", "seed", "optimizer", "schedule", "train")}
        data = {"dataset": described["data"]["dataset"], "options": described["data"]["options"]}
        save_model(
            model,
            self.folder / "model",
            data=data,
            training={**training, "best_step": self.best["step"], "hash": self.resolved.hash},
            metrics=metrics,
            zoo=self.zoo,
        )
        result = {
            "model": self.spec.architecture,
            "dataset": data["dataset"],
            "steps": self.steps,
            "best_step": self.best["step"],
            "validation_loss": self.best["loss"] if math.isfinite(self.best["loss"]) else None,
            "train_loss": self.train_loss if math.isfinite(self.train_loss) else None,
            "metrics": metrics,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
            "hash": self.resolved.hash,
            "folder": str(self.folder),
        }
        files.write_atomic(self.folder / RESULT, files.pretty_json(result))
        return result


def finite_or_text(value: Any) -> Any:
    """Plain data whose infinities are text, as JSON has none; `float` reads them back."""
    if isinstance(value, dict):
        return {key: finite_or_text(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def find_trackers(zoo: Zoo, names: list[str]) -> dict[str, Any]:
    """The hooks of the plugins that are to record the run. InputError for one that is not there or hears nothing."""
    hearing: dict[str, Any] = {
        plugin.name: plugin.manager
        for event in ("on_train_start", "on_log", "on_train_end")
        for plugin, _ in plugins.each(zoo.plugins, event)
    }
    for name in names:
        if name not in hearing:
            hint = did_you_mean(name, hearing) or f"trackers here: {', '.join(sorted(hearing)) or 'none'}"
            raise InputError(f"no plugin {name!r} hears the events of a run (train.trackers)", hint=hint)
    return {name: hearing[name].hook for name in names}
