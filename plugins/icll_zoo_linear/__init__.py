"""Linear attention and its successors: mixers whose state is a matrix a head, or a few numbers a channel."""

from icll_zoo import hookimpl

LICENSE = "Apache-2.0"

# Sizes: about 1.5, 25 and 340 million parameters, at vocabularies of 20, 20 and 32,000 tokens.
SMALL = {"d_model": 128, "n_layers": 8}
BASE = {"d_model": 512, "n_layers": 8}
LARGE = {"d_model": 1024, "n_layers": 24, "norm": "rmsnorm", "mlp": "swiglu", "mlp_ratio": 8 / 3, "dropout": 0.0}


@hookimpl
def register_mixers(register):
    register(
        "linear-transformer",
        "icll_zoo_linear.linear_transformer:LinearAttention",
        presets={
            "paper": {"n_layers": 8, "n_heads": 2, "attention_dropout": 0.1, "max_length": 4098},
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {**LARGE, "n_heads": 16, "max_length": 2048},
        },
        backbone={"positions": "learned"},
        license=LICENSE,
        paper="arXiv:2006.16236",
    )
    register(
        "retnet",
        "icll_zoo_linear.retnet:Retention",
        presets={
            "paper": {"n_layers": 8, "n_heads": 2, "bias": True, "normalise": True},
            # The paper of RetNet gives the values the width that it takes from the MLP.
            "small": {**SMALL, "mlp_ratio": 2.0, "n_heads": 2},
            "base": {**BASE, "mlp_ratio": 2.0, "n_heads": 4},
            "340m": {**LARGE, "mlp_ratio": 4 / 3, "n_heads": 8},
        },
        license=LICENSE,
        paper="arXiv:2307.08621",
    )
    register(
        "gla",
        "icll_zoo_linear.gla:GatedLinearAttention",
        presets={
            "paper": {"n_layers": 8, "n_heads": 2, "min_log_decay": -3.0, "scale_by": "value"},
            "small": SMALL,
            "base": {**BASE, "n_heads": 4},
            "340m": {**LARGE, "n_heads": 4},
        },
        license=LICENSE,
        paper="arXiv:2312.06635",
    )
    register(
        "hgrn-2",
        "icll_zoo_linear.hgrn2:Hgrn2",
        presets={
            "small": {**SMALL, "n_heads": 1},
            "base": {**BASE, "n_heads": 4},
            "340m": {**LARGE, "n_heads": 8},
        },
        license=LICENSE,
        paper="arXiv:2404.07904",
    )
    register(
        "rwkv-6",
        "icll_zoo_linear.rwkv6:FinchTimeMixing",
        presets={
            "small": SMALL,
            "base": {**BASE, "n_heads": 8, "mlp_ratio": 3.0},
            "340m": {"d_model": 1024, "n_layers": 24, "n_heads": 16, "mlp_ratio": 3.0, "dropout": 0.0},
        },
        backbone={"mlp": "rwkv", "mlp_ratio": 3.5},
        license=LICENSE,
        paper="arXiv:2404.05892",
    )
    register(
        "rwkv-4",
        "icll_zoo_linear.rwkv4:RwkvTimeMixing",
        presets={
            # The reference of arXiv:2401.12973 took the time mixing alone, and its decays with the wrong sign.
            "paper": {"n_layers": 8, "mlp": "gelu", "init": "normal", "amplify": True},
            "small": SMALL,
            "base": {**BASE, "mlp_ratio": 3.5},
            "340m": {"d_model": 1024, "n_layers": 24, "mlp_ratio": 3.5, "dropout": 0.0},
        },
        backbone={"mlp": "rwkv"},
        license=LICENSE,
        paper="arXiv:2305.13048",
    )
    register(
        "deltanet",
        "icll_zoo_linear.deltanet:DeltaNet",
        presets={
            # One cell of the sweep behind DeltaNet's figure; it also ran 256 to 1024 dimensions, 4 to 12 layers, the
            # convolution off and the gate on.
            "paper": {
                "d_model": 256,
                "n_layers": 8,
                "n_heads": 4,
                "expand_k": 0.5,
                "conv": "shared",
                "scaled_out": False,
            },
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {**LARGE, "n_heads": 8},
        },
        license=LICENSE,
        paper="arXiv:2406.06484",
    )
    register(
        "gated-deltanet",
        "icll_zoo_linear.gated_deltanet:GatedDeltaNet",
        presets={
            # Its 6 d_model^2 parameters a layer are half as many again as attention's: the MLP gives them back.
            "small": {**SMALL, "mlp_ratio": 3.0},
            "base": {**BASE, "mlp_ratio": 3.0, "n_heads": 4},
            "340m": {**LARGE, "mlp_ratio": 2.0, "n_heads": 6},
        },
        license=LICENSE,
        paper="arXiv:2412.06464",
    )
    register(
        "kda",
        "icll_zoo_linear.kda:KimiDeltaAttention",
        presets={
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {**LARGE, "n_heads": 8},
        },
        license=LICENSE,
        paper="arXiv:2510.26692",
    )
    register(
        "rwkv-7",
        "icll_zoo_linear.rwkv7:GooseTimeMixing",
        presets={
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {"d_model": 1024, "n_layers": 24, "n_heads": 16, "dropout": 0.0},
        },
        backbone={"mlp": "rwkv", "mlp_ratio": 3.5},
        license=LICENSE,
        paper="arXiv:2503.14456",
    )
    register(
        "mesanet",
        "icll_zoo_linear.mesanet:MesaNet",
        presets={
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {**LARGE, "n_heads": 8},
        },
        license=LICENSE,
        paper="arXiv:2506.05233",
    )
