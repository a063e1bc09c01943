"""State-space models: S4D, H3, Hyena, Mamba and Mamba-2, and the linear recurrences LRU and GILR.

Presets: `-paper` as in "In-Context Language Learning" (arXiv:2401.12973), with the settings of its last runs; `-small`
and `-base` for small vocabularies, about 2 and 26 million parameters; `-340m` for text, within 5 % of 340 million at a
vocabulary of 32,000, the embedding tied.
"""

from icll_zoo import hookimpl

# What a Transformer's block of 12 d_model^2 parameters is, by the width of its MLP beside mixers of 1, 4 and 6 times
# d_model^2.
MODERN = {"norm": "rmsnorm", "mlp": "swiglu"}
S4D_MLP, GILR_MLP, LRU_MLP = ({**MODERN, "mlp_ratio": ratio} for ratio in (11 / 3, 8 / 3, 2.0))
# The Mambas have no MLP: a block is one mixer, with an RMSNorm before it, half as large as a Transformer's.
MAMBA_STACK = {"norm": "rmsnorm", "mlp": "none"}
# The reference's Mamba runs: one layer between N(0, 1) tied embeddings, with no norm, residual or dropout, and no MLP.
# Its code asks for up to 12 layers but feeds the embeddings to each of them and keeps the last.
MAMBA_AS_PUBLISHED = {
    "d_model": 512,
    "n_layers": 1,
    "norm": "none",
    "mlp": "none",
    "residual": False,
    "dropout": 0.0,
    "init_std": 1.0,
}


def sizes(blocks=1, task=None, layers=24, **recipe):
    """The presets of size: `blocks` mixers stand for one block of a Transformer; `layers` of those for text.

    task: what the two small ones set beside their width and depth; `recipe` is the text model's.
    """
    return {
        "small": {"d_model": 128, "n_layers": 8 * blocks, **(task or {})},
        "base": {"d_model": 512, "n_layers": 8 * blocks, **(task or {})},
        "340m": {"d_model": 1024, "n_layers": layers * blocks, "max_length": 2048, **recipe},
    }


@hookimpl
def register_mixers(register):
    register(
        "s4d",
        "icll_zoo_ssm.s4d:S4d",
        presets={"paper": {"d_model": 128, "n_layers": 12}, **sizes(task={"mlp_ratio": 5.5}, **S4D_MLP)},
        license="Apache-2.0",
        paper="arXiv:2206.11893",
    )
    register(
        "h3",
        "icll_zoo_ssm.h3:H3",
        # Their last sweep has states of 128 and 256; which of them won is not recorded.
        presets={"paper": {"d_model": 128, "n_layers": 8, "d_state": 128}, **sizes()},
        license="Apache-2.0",
        paper="arXiv:2212.14052",
    )
    register(
        "hyena",
        "icll_zoo_ssm.hyena:Hyena",
        presets={"paper": {"d_model": 128, "n_layers": 12, "max_length": 4098}, **sizes()},
        license="Apache-2.0",
        paper="arXiv:2302.10866",
    )
    register(
        "mamba",
        "icll_zoo_ssm.mamba:Mamba",
        presets={"paper": MAMBA_AS_PUBLISHED, **sizes(blocks=2, layers=23)},
        backbone=MAMBA_STACK,
        license="Apache-2.0",
        paper="arXiv:2312.00752",
    )
    register(
        "mamba-2",
        "icll_zoo_ssm.mamba2:Mamba2",
        presets=sizes(blocks=2),
        backbone=MAMBA_STACK,
        license="Apache-2.0",
        paper="arXiv:2405.21060",
    )
    register(
        "lru",
        "icll_zoo_ssm.lru:Lru",
        presets=sizes(task={"mlp_ratio": 3.0}, **LRU_MLP),
        license="Apache-2.0",
        paper="arXiv:2303.06349",
    )
    register(
        "gilr",
        "icll_zoo_ssm.gilr:Gilr",
        presets=sizes(**GILR_MLP),
        license="Apache-2.0",
        paper="arXiv:1709.04057",
    )
