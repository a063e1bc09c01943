"""Random regular languages (arXiv:2401.12973, section 3), the metrics on them, the verb `languages`, and regular
languages of a user's own."""

from icll_zoo import hookimpl

# The bounds of the paper's text. Those of the preset `dfa` are what its code draws: upper bounds are exclusive there.
STATED = {"degree_max": 4, "strings_max": 20, "length_max": 50}
METRICS = (
    "accuracy",
    "accuracy-loop",
    "token-accuracy",
    "tvd",
    "kl",
    "cross-entropy",
    "perplexity",
    "accuracy-curve",
    "tvd-curve",
    "cross-entropy-curve",
)


@hookimpl
def register_datasets(register):
    register(
        "dfa",
        "icll_zoo_dfa.dataset:DfaLanguages",
        presets={"stated": STATED},
        license="Apache-2.0",
        paper="arXiv:2401.12973",
    )
    register("regular-language", "icll_zoo_dfa.regular:RegularLanguage", license="Apache-2.0", paper="arXiv:2401.12973")


@hookimpl
def register_metrics(register):
    for name in METRICS:
        register(name, f"icll_zoo_dfa.metrics:{name.replace('-', '_')}", license="Apache-2.0")


@hookimpl
def register_commands(cli):
    from icll_zoo_dfa.command import languages

    cli.add_command(languages)
