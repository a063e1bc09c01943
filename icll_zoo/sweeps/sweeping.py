"""Many runs from one file: checked before any of them starts, trained several at a time, gathered in one table.

    icll_zoo.sweep("lr.yaml", "lr", jobs=4)

FOLDER/
  runs/LABEL-HASH/    the run folders; what is finished there is not run again
  logs/               what each run printed
  ledger.jsonl        what happened, see ledger.py
  results.csv         a row a run, and the same as results.parquet
  lock                held while a sweep is at work here
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from icll_zoo import files, tables
from icll_zoo.errors import EnvironmentFault, InputError, Interrupted, printable
from icll_zoo.registry import SCRIPT, Entry, Space
from icll_zoo.run import Resolved, Run, merge
from icll_zoo.run_folder import check_folder, locked
from icll_zoo.sweeps import descriptions, ledger
from icll_zoo.sweeps.board import Board, Job
from icll_zoo.sweeps.ledger import Ledger
from icll_zoo.sweeps.processes import RUNS_A_GPU, run_processes
from icll_zoo.zoo import ModelSpec, Vocabulary, Zoo, default_zoo

Engine = Literal["processes", "ray"]


def sweep(
    runs: str | Path | Iterable[Run | Mapping[str, Any]],
    output: str | Path | None = None,
    *,
    jobs: int | None = None,
    engine: Engine = "processes",
    address: str | None = None,
    retries: int = 0,
    zoo: Zoo | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train every run that is not finished yet, and return the table's rows, in the order of the descriptions.

    runs: a YAML or Python file (see descriptions.py), or the descriptions themselves. output: the sweep's folder; for a
    file, its name without the suffix. jobs: runs at a time; by default one a core, or four a GPU. engine: "processes"
    of this machine, or "ray" at `address`. retries: how often a run that failed is tried again.
    A run that fails does not stop the others: its row's status is "failed", with the reason.
    Raises InputError with all faults before anything starts; EnvironmentFault if another sweep is at work in the
    folder, or for a disk; Interrupted after saving.
    """
    zoo = zoo or default_zoo()
    if engine not in ("processes", "ray"):
        raise InputError(f"unknown engine {engine!r}", hint="processes or ray")
    if address is not None and engine != "ray":
        raise InputError("an address is for the engine ray", hint="add --engine ray")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("ray is not installed", hint="pip install 'icll-zoo[ray]'")
    for name, value, least in (("jobs", jobs, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise InputError(f"{name}={value} is less than {least}")
    if output is None:
        if not isinstance(runs, str | Path):
            raise InputError("a sweep of descriptions needs an output folder")
        output = Path(runs).stem
    folder = Path(output)
    check_sweep_folder(folder)
    given = descriptions.read(runs, zoo)
    count, threads = shares(given, jobs, engine, ledger.threads(ledger.read(folder)))
    planned, notes = plan(given, folder, threads, zoo)
    with ExitStack() as stack:
        take(folder, stack)
        record = Ledger(folder)
        record.add(
            "sweep", runs=len(planned), jobs=count if engine == "processes" else jobs, threads=threads, engine=engine
        )
        board = stack.enter_context(Board(planned, record, quiet=quiet))
        for note in notes:
            board.say(note)
        waiting = [job for job in planned if job.status == "waiting"]
        scripts = [str(path) for path in zoo.scripts]
        try:
            if waiting and engine == "ray":
                from icll_zoo.sweeps.cluster import run_ray

                run_ray(waiting, board, count=jobs, address=address, threads=threads, scripts=scripts, retries=retries)
            elif waiting:
                run_processes(waiting, board, count=count, threads=threads, scripts=scripts, retries=retries)
        except Interrupted as stop:
            done = f"{board.count('finished')} of {len(planned)} runs are finished, and the same command goes on"
            raise Interrupted(f"{stop}: {done}", stop.exit_code) from None
        finally:
            rows = [row(job) for job in planned]
            ledger.write_table(folder, rows)
        record.add("end", finished=board.count("finished"), failed=board.count("failed"))
    return rows


# -- before anything starts ------------------------------------------------------------------------------------


def check_sweep_folder(folder: Path) -> None:
    """Raise InputError for a folder that is something else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {str(folder)!r} is not a folder")
    if not folder.is_dir() or (folder / ledger.LEDGER).exists():
        return
    if any(path.name not in ("lock", "runs", "logs") for path in folder.iterdir()):
        raise InputError(
            f"output folder {str(folder)!r} is not empty and holds no sweep", hint="choose another --output"
        )


def shares(given: Sequence[Mapping[str, Any]], jobs: int | None, engine: Engine, before: int | None) -> tuple[int, int]:
    """How many runs at a time, and the threads of those that do not say.

    before: the threads that this sweep began with. They are part of what a run is, so they stay whatever `jobs` is now.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = [train for one in given if isinstance(train := one.get("train", {}), Mapping)]
    said = [threads for one in settings if isinstance(threads := one.get("threads"), int) and threads > 0]
    if jobs is None:
        on_cpu = any(one.get("device", "auto") == "cpu" for one in settings) or not torch.cuda.is_available()
        most = cores // max(said, default=1) if on_cpu else RUNS_A_GPU * torch.cuda.device_count()
        jobs = max(1, min(most, len(given)))
    return jobs, before or (1 if engine == "ray" else max(1, cores // jobs))


def plan(given: Sequence[dict[str, Any]], folder: Path, threads: int, zoo: Zoo) -> tuple[list[Job], list[str]]:
    """The jobs, each run once, and what a person should know. Raises InputError with the faults of all descriptions."""
    varied = descriptions.varied_keys(list(given))
    faults: dict[str, list[int]] = {}
    first: InputError | None = None
    jobs: dict[str, Job] = {}
    numbers: dict[str, list[int]] = {}
    built: dict[str, InputError | None] = {}
    for number, one in enumerate(given, 1):
        try:
            # "It is the same run" is a matter of the resolved description: of defaults that somebody wrote out, too.
            run = Run.parse(merge({"train": {"threads": threads}}, one) if mapping(one, "train") else one, "the run")
            resolved = run.resolve(zoo)
            numbers.setdefault(resolved.hash, []).append(number)
            if resolved.hash in jobs:
                continue
            said = descriptions.flat(one)
            values = {k: said[k] if k in said else descriptions.lookup(resolved.description, k) for k in varied}
            resolved.output = run_folder(folder / "runs", resolved, values)
            job = Job(resolved, label_of(values) or f"{one['architecture']} on {one['dataset']}", values)
            jobs[resolved.hash] = job
            check(resolved, zoo, built)
            job.result = check_folder(resolved)
            if job.result is not None:
                job.status, job.step = "finished", resolved.description["steps"]
        except InputError as error:
            first = first or error
            for fault in error.faults:
                faults.setdefault(fault, []).append(number)
    if first is not None:
        lines = [f"{fault} (in {counted(places, len(given))})" for fault, places in faults.items()]
        # Alone, a fault is shown with the hint that came with it.
        message = lines[0] if len(lines) > 1 else f"{first} (in {counted(next(iter(faults.values())), len(given))})"
        raise InputError(message, hint="nothing was started" if len(lines) > 1 else "", faults=lines) from first
    notes = [
        f"runs {', '.join(map(str, places))} of the file are the same run, which is trained once"
        for places in numbers.values()
        if len(places) > 1
    ]
    finished = sum(job.status == "finished" for job in jobs.values())
    if finished:
        notes.append(f"{finished} of {len(jobs)} runs were finished before")
    return list(jobs.values()), notes


def mapping(one: Mapping[str, Any], key: str) -> bool:
    """Whether something may be laid under a key: what is wrong there, the description's own check says better."""
    return isinstance(one.get(key, {}), Mapping)


def counted(places: Sequence[int], total: int) -> str:
    """The runs that a fault is in."""
    if len(places) == total > 1:
        return f"all {total} runs"
    shown = ", ".join(map(str, places[:5])) + (" ..." if len(places) > 5 else "")
    return f"run{'s' if len(places) > 1 else ''} {shown}"


def check(resolved: Resolved, zoo: Zoo, built: dict[str, InputError | None]) -> None:
    """What training would refuse before its first step, without the memory that it takes.

    built: what was wrong with the models that were tried before, by description.
    """
    from icll_zoo.training import find_trackers

    description = resolved.description
    data, model = description["data"], description["model"]
    named: list[tuple[Space, str]] = [("model", model["architecture"]), ("dataset", data["dataset"])]
    named += [("metric", name) for name in description["metrics"]]
    named += [("model", mixer) for mixer in ModelSpec(**model).mixers()]
    checks: list[Callable[[], object]] = [lambda: find_trackers(zoo, description["train"]["trackers"])]
    checks += [functools.partial(check_reachable, zoo.entry(space, name)) for space, name in named]
    found: list[InputError] = []
    for one in checks:
        try:
            one()
        except InputError as error:
            found.append(error)
    key = files.canonical_json([model, data, description["optimizer"]])
    if key not in built:
        built[key] = try_model(description, zoo)
    if (fault := built[key]) is not None:
        found.append(fault)
    if found:
        raise found[0] if len(found) == 1 else InputError(str(found[0]), faults=[f for e in found for f in e.faults])


def check_reachable(entry: Entry) -> None:
    """Raise InputError for a name that only this process knows: the runs train in others."""
    if entry.plugin == SCRIPT and not str(getattr(entry.target, "__module__", "")).startswith("icll_zoo_script_"):
        raise InputError(
            f"{entry.name!r} was registered in this process, and the runs of a sweep train in others",
            hint="put it in a file: --load FILE, or zoo.load_script(FILE)",
        )


def try_model(description: Mapping[str, Any], zoo: Zoo) -> InputError | None:
    """Why a run's model, optimizer or dataset cannot be made; None if they can."""
    from icll_zoo.optimizers import create_optimizer
    from icll_zoo.rebuild import skeleton

    try:
        dataset = zoo.create_dataset(description["data"]["dataset"], **description["data"]["options"])
        if dataset.size("validation") == 0:
            name = description["data"]["dataset"]
            return InputError(f"dataset {name!r} has no validation split under these options")
        model = skeleton(zoo, ModelSpec(**description["model"]), Vocabulary.of(dataset))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return InputError(f"model {description['model']['architecture']!r} has nothing to train")
        create_optimizer(description["optimizer"], model)
    except InputError as error:
        return error
    except Exception as error:  # noqa: BLE001  a plugin's constructor may raise anything
        name = description["model"]["architecture"]
        return InputError(f"model {name!r} cannot be made: {type(error).__name__}: {error}")
    return None


# -- names -----------------------------------------------------------------------------------------------------


def label_of(varied: Mapping[str, Any]) -> str:
    """What tells a run from the others: `d_model=64 seed=1`."""
    words = []
    for key, value in varied.items():
        text = value if isinstance(value, str) else files.canonical_json(value)
        words.append(text if key in ("architecture", "dataset") else f"{key.rpartition('.')[2]}={text}")
    return printable(" ".join(words), 80)


def run_folder(runs: Path, resolved: Resolved, varied: Mapping[str, Any]) -> Path:
    """The folder of a run: the one that has its hash already, or a new one, with a name that a person can read."""
    short = resolved.hash[:10]
    if runs.is_dir():
        for found in sorted(runs.glob(f"*-{short}")):
            return found
    words = [
        f"{'' if key in ('architecture', 'dataset') else key.rpartition('.')[2]}-{tables.cell(value)}"
        for key, value in varied.items()
    ] or [descriptions.lookup(resolved.description, key).rpartition(":")[2] for key in ("architecture", "dataset")]
    # No "=", which would make an option of the word `local-dir:FOLDER` on a command line.
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words))[:80].strip("-.") or "run"
    return runs / f"{safe}-{short}"


def take(folder: Path, stack: ExitStack) -> None:
    """Make the folder, and hold it until the sweep is over. EnvironmentFault if another sweep does."""
    try:
        stack.enter_context(locked(folder))
    except EnvironmentFault as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        raise EnvironmentFault(
            f"another sweep is at work in {str(folder)!r}", hint="wait for it, or choose another --output"
        ) from error
    with files.disk_faults("sweep folder", folder):
        for name in ("runs", "logs"):
            (folder / name).mkdir(exist_ok=True)


def row(job: Job) -> dict[str, Any]:
    """A job's row of the table: what was varied, how it went, what came out."""
    result = job.result or {}
    metrics = {k: v for k, v in (result.get("metrics") or {}).items() if k != "validation_loss"}
    settings = job.resolved.description["train"]
    return {
        **job.varied,
        "status": job.status,
        "validation_loss": result.get("validation_loss"),
        **metrics,
        "train_loss": result.get("train_loss"),
        "steps": job.steps,
        "best_step": result.get("best_step"),
        "parameters": result.get("parameters"),
        "tokens": result.get("tokens"),
        "seconds": result.get("seconds"),
        "device": settings["device"],
        "threads": settings["threads"],
        "hash": job.resolved.hash,
        "folder": str(job.folder),
        "reason": job.reason,
    }
