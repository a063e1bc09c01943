"""`icll-zoo from-transformers FOLDER OUTPUT` and `icll-zoo to-transformers SOURCE OUTPUT`."""

from __future__ import annotations

import click

check = click.option(
    "--verify", "check", is_flag=True, help="Compare the answers of the two models; needs transformers."
)


@click.command("from-transformers")
@click.argument("folder")
@click.argument("output")
@check
def from_transformers(folder: str, output: str, check: bool) -> None:
    """Import a model that transformers saved.

    FOLDER holds config.json and *.safetensors of a Llama, Mamba, Mamba-2 or RWKV-4 model; OUTPUT becomes a folder
    that `local-dir:OUTPUT` loads.
    """
    from icll_zoo import save_model
    from icll_zoo_transformers import convert

    model = convert.from_transformers(folder)
    if check:
        print(f"off by {convert.verify(model, folder):.3g} of the largest logit")
    print(f"wrote {save_model(model, output, training={'imported': 'from a checkpoint of transformers'})}")


@click.command("to-transformers")
@click.argument("source")
@click.argument("output")
@check
def to_transformers(source: str, output: str, check: bool) -> None:
    """Export a model so that transformers loads it.

    SOURCE is a saved model (`local-dir:PATH` or a name); OUTPUT becomes a folder for
    AutoModelForCausalLM.from_pretrained.
    """
    from icll_zoo import load_model
    from icll_zoo_transformers import convert

    model = load_model(source)
    written = convert.to_transformers(model, output)
    if check:
        print(f"off by {convert.verify(model, written):.3g} of the largest logit")
    print(f"wrote {written}")
