"""The n-gram heads of "In-Context Language Learning" (arXiv:2401.12973) and models made of them."""

from icll_zoo import hookimpl

PAPER = "arXiv:2401.12973"
# The paper's n-gram blocks have an MLP as wide as the model, not four times as wide.
HEADS = [{"mixer": "ngram:ngram-head", "order": order, "mlp_ratio": 1} for order in (1, 2, 3)]


def hybrid(mixer, mlp_ratio=2, blocks=5, **options):
    """A model of so many blocks of a mixer, with heads of orders 1, 2 and 3 after the first: the paper's has eight.

    Its mixers' MLPs are twice as wide as the model (the branch of its code that has hybrids).
    """
    block = {"mixer": mixer, "mlp_ratio": mlp_ratio}
    return {"layers": [block, *HEADS, *[block] * (blocks - 1)], **options}


def text(mixer, mlp_ratio, blocks=22, **options):
    """A language model of 340 million parameters: heads in the place of two of the 24 layers of MIXER-340m.

    The three heads have as many parameters as 1.25 layers, so that a hybrid has 1 to 3 % fewer than what it is compared
    with. Where the paper has its heads at this size is not known.
    """
    rest = {"d_model": 1024, "norm": "rmsnorm", "mlp": "swiglu", "dropout": 0.0, "max_length": 2048}
    return {"340m": hybrid(mixer, mlp_ratio, blocks, **rest, **options)}


HYBRIDS = {
    "transformer-ngram": hybrid("baselines:transformer", positions="learned"),
    "transformer-rope-ngram": hybrid("baselines:transformer-rope"),
    "gla-ngram": hybrid("linear:gla", d_model=256, n_heads=2),
    "retnet-ngram": hybrid("linear:retnet", d_model=128, n_heads=4),
    "deltanet-ngram": hybrid("linear:deltanet"),
    "gated-deltanet-ngram": hybrid("linear:gated-deltanet"),
    "rwkv-4-ngram": hybrid("linear:rwkv-4"),
    # A Mamba block has no MLP of its own.
    "mamba-ngram": hybrid("ssm:mamba", mlp_ratio=0),
}

TEXT = {
    "transformer-rope-ngram": text("baselines:transformer-rope", 8 / 3, n_heads=16),
    "gla-ngram": text("linear:gla", 8 / 3, n_heads=4),
    "retnet-ngram": text("linear:retnet", 4 / 3, n_heads=8),
    "deltanet-ngram": text("linear:deltanet", 8 / 3, n_heads=8),
    "gated-deltanet-ngram": text("linear:gated-deltanet", 2.0, n_heads=6),
    "mamba-ngram": text("ssm:mamba", 0, blocks=42),
}


@hookimpl
def register_mixers(register):
    register(
        "ngram-head",
        "icll_zoo_ngram.head:NGramHead",
        presets={"stack": {"d_model": 64, "layers": HEADS}},
        backbone={"mlp_ratio": 1},
        license="Apache-2.0",
        paper=PAPER,
    )
    for name, backbone in HYBRIDS.items():
        register(name, None, presets=TEXT.get(name, {}), backbone=backbone, license="Apache-2.0", paper=PAPER)
