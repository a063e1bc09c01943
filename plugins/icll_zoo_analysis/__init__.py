"""What a trained model does inside: n-gram heads, probes, states; and beside other predictors.

    icll-zoo heads SOURCE dfa
    icll-zoo compare SOURCE ngram-2 ngram-3 oracle dfa

Every verb prints a table, and writes pictures and the numbers behind them: docs/analysis.md, docs/comparing.md.
"""

from icll_zoo import hookimpl


@hookimpl
def register_commands(cli):
    """The verbs, each in a file of its own."""
    from icll_zoo_analysis.compare_command import compare
    from icll_zoo_analysis.curve_command import curve
    from icll_zoo_analysis.diagram_command import diagram
    from icll_zoo_analysis.heads_command import heads
    from icll_zoo_analysis.probe_command import probe
    from icll_zoo_analysis.states_command import states

    cli.add_command(compare)
    cli.add_command(curve)
    cli.add_command(diagram)
    cli.add_command(heads)
    cli.add_command(probe)
    cli.add_command(states)
