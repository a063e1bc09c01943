"""Weights from and to `transformers`: Llama, Mamba, Mamba-2 and RWKV-4, by mapping names, layouts and options.

    model = icll_zoo_transformers.from_transformers("FOLDER")     # config.json and *.safetensors, as transformers saves
    icll_zoo_transformers.to_transformers(model, "FOLDER")        # what AutoModelForCausalLM.from_pretrained reads

Both only read and write JSON and safetensors: transformers need not be installed, except to compare the two models'
answers (`verify`, and `--verify` of the verbs).
"""

from icll_zoo import hookimpl

__all__ = ["from_transformers", "to_transformers", "verify"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from icll_zoo_transformers import convert

    return getattr(convert, name)


@hookimpl
def register_commands(cli):
    from icll_zoo_transformers.command import from_transformers, to_transformers

    cli.add_command(from_transformers)
    cli.add_command(to_transformers)
