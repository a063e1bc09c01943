"""TensorBoard as a tracker: `train.trackers=tensorboard` writes RUN/tensorboard, read by `tensorboard --logdir`."""

from icll_zoo import InputError, hookimpl

WRITERS: dict[str, object] = {}
"""The open writer of every run in this process, by its folder."""


@hookimpl
def on_train_start(run):
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise InputError("tensorboard is not installed", hint="pip install 'icll-zoo[tensorboard]'") from error
    WRITERS[str(run.folder)] = Writer(str(run.folder / "tensorboard"))


@hookimpl
def on_log(run, step, values):
    writer = WRITERS[str(run.folder)]
    for name, value in values.items():
        writer.add_scalar(name, value, step)


@hookimpl
def on_train_end(run, error):
    writer = WRITERS.pop(str(run.folder), None)
    if writer is not None:
        writer.close()
