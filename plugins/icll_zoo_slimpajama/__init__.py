"""SlimPajama and any other text: the verb `prepare-text`, the dataset `text`, and metrics of language modelling."""

from icll_zoo import hookimpl

METRICS = ("bits-per-byte", "induction-score")
NGRAMS = (2, 3)
"""Orders of the n-grams whose repetition is told apart from what is new."""


@hookimpl
def register_datasets(register):
    register("text", "icll_zoo_slimpajama.dataset:Text", license="Apache-2.0", paper="arXiv:2401.12973")


@hookimpl
def register_metrics(register):
    for name in METRICS:
        register(name, f"icll_zoo_slimpajama.metrics:{name.replace('-', '_')}", license="Apache-2.0")
    for n in NGRAMS:
        for kind in ("in-context", "new"):
            function = f"{kind.replace('-', '_')}_{n}gram_loss"
            register(f"{kind}-{n}gram-loss", f"icll_zoo_slimpajama.metrics:{function}", license="Apache-2.0")


@hookimpl
def register_commands(cli):
    from icll_zoo_slimpajama.command import prepare_text

    cli.add_command(prepare_text)
