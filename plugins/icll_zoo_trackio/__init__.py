"""trackio as a tracker: `train.trackers=trackio` writes to trackio's folder on this machine, read by `trackio show`.

Only there, and nobody is asked anything: the run is not made by `trackio.init`, which sends it to a server that an
environment variable names and asks the Hub whose token it finds. The folder is TRACKIO_DIR, by default below
~/.cache/huggingface. A run that goes on after a kill logs the steps behind its checkpoint again, with the same values.
"""

import contextlib
import hashlib
import io

from icll_zoo import InputError, hookimpl

PROJECT = "icll-zoo"
RUNS: dict[str, object] = {}
"""The open run of trackio for every run in this process, by its folder."""


@hookimpl
def on_train_start(run):
    try:
        import trackio
    except ImportError as error:
        raise InputError("trackio is not installed", hint="pip install 'icll-zoo[trackio]'") from error

    class LocalRun(trackio.Run):
        def _get_username(self):
            return None  # the Hub is asked for it otherwise

    folder = run.folder.resolve()
    in_sweep = folder.parent.name == "runs"
    RUNS[str(run.folder)] = LocalRun(
        url=None,
        client=None,
        project=PROJECT,
        name=folder.name,
        # The same folder is the same run, so that one which goes on continues its curve.
        run_id=hashlib.sha256(str(folder).encode()).hexdigest()[:32],
        group=folder.parent.parent.name if in_sweep else None,
        config=run.description,
    )


@hookimpl
def on_log(run, step, values):
    RUNS[str(run.folder)].log(dict(values), step=step)


@hookimpl
def on_train_end(run, error):
    open_run = RUNS.pop(str(run.folder), None)
    if open_run is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces an upload, on the stdout of `train --json`
            open_run.finish()
