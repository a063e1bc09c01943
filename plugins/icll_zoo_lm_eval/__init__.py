"""Models of the zoo in EleutherAI's lm-eval, and datasets of the zoo as its tasks.

    icll-zoo to-lm-eval dfa tasks/ data.languages=1000
    lm_eval --model icll-zoo --model_args source=local-dir:FOLDER --tasks tasks/perplexity.yaml

Releases of lm-eval after 0.4.13 find the model by its entry point in the group `lm_eval.models`. Earlier ones learn of
it from the task files that `to-lm-eval` writes, given by path, or by starting lm-eval as `python -m icll_zoo_lm_eval`.
"""

from icll_zoo import hookimpl


@hookimpl
def register_commands(cli):
    from icll_zoo_lm_eval.command import to_lm_eval

    cli.add_command(to_lm_eval)
