"""Baselines: softmax attention (ours and timm's), recurrent networks, and the classical learners."""

from icll_zoo import hookimpl

# The reference's LSTM runs: one layer between N(0, 1) tied embeddings, with no norm, MLP, residual or dropout. Its
# code asks for more layers but feeds the embeddings to each of them and keeps the last.
AS_PUBLISHED = {
    "n_layers": 1,
    "norm": "none",
    "mlp": "none",
    "residual": False,
    "dropout": 0.0,
    "init_std": 1.0,
}

# Sizes: about 2 and 25 million parameters for small vocabularies, and a language model of text, within 5 % of 340
# million at a vocabulary of 32,000, the embedding tied.
SMALL = {"d_model": 128, "n_layers": 8}
BASE = {"d_model": 512, "n_layers": 8}
TEXT = {"d_model": 1024, "n_layers": 24, "max_length": 2048, "dropout": 0.0}
# Of Llama (arXiv:2302.13971).
MODERN = {"norm": "rmsnorm", "mlp": "swiglu", "mlp_ratio": 8 / 3}


@hookimpl
def register_mixers(register):
    register(
        "transformer",
        "icll_zoo_baselines.transformer:Attention",
        presets={
            # The reference's best from 5,000 languages on.
            "paper": {"d_model": 128, "n_layers": 8, "n_heads": 2, "max_length": 4098},
            "small": SMALL,
            "base": {**BASE, "n_heads": 8},
            "340m": {**TEXT, "n_heads": 16, "attention_dropout": 0.0},
        },
        backbone={"positions": "learned"},
        license="Apache-2.0",
        paper="arXiv:1706.03762",
    )
    register(
        "transformer-rope",
        "icll_zoo_baselines.rope:RotaryAttention",
        presets={"small": SMALL, "base": BASE, "340m": {**TEXT, **MODERN, "n_heads": 16}},
        license="Apache-2.0",
        paper="arXiv:2104.09864",
    )
    register(
        "lstm",
        "icll_zoo_baselines.lstm:Lstm",
        # Its four gates are twice as large as attention; the MLP gives them back.
        presets={
            "paper": AS_PUBLISHED,
            "small": {**SMALL, "mlp_ratio": 2.0},
            "base": {**BASE, "mlp_ratio": 2.0},
            "340m": {**TEXT, **MODERN, "mlp_ratio": 4 / 3},
        },
        license="Apache-2.0",
        paper="doi:10.1162/neco.1997.9.8.1735",
    )
    register("gru", "icll_zoo_baselines.gru:Gru", license="Apache-2.0", paper="arXiv:1406.1078")
    register("rnn", "icll_zoo_baselines.rnn:Rnn", license="Apache-2.0", paper="doi:10.1207/s15516709cog1402_1")
    # timm's block has norms, residuals and an MLP of its own, and the norm after the last one too.
    register(
        "timm-vit",
        "icll_zoo_baselines.timm_vit:TimmVit",
        backbone={"positions": "learned", "norm": "none", "mlp": "none", "residual": False},
        license="Apache-2.0",
        paper="arXiv:2010.11929",
    )


@hookimpl
def register_architectures(register):
    register(
        "ngram",
        "icll_zoo_baselines.ngram:NGramLearner",
        presets={str(order): {"order": order} for order in range(1, 9)},
        license="Apache-2.0",
        paper="arXiv:2401.12973",
    )
    register(
        "kneser-ney",
        "icll_zoo_baselines.kneser_ney:KneserNeyLearner",
        presets={str(order): {"order": order} for order in range(2, 9)},
        license="Apache-2.0",
        paper="doi:10.1109/ICASSP.1995.479394",
    )
    register(
        "infinigram",
        "icll_zoo_baselines.infinigram:InfinigramLearner",
        presets={"backoff": {"smoothing": "backoff"}},
        license="Apache-2.0",
        paper="arXiv:2401.17377",
    )
    register(
        "baum-welch",
        "icll_zoo_baselines.baum_welch:BaumWelchLearner",
        license="Apache-2.0",
        paper="arXiv:2401.12973",
    )
    register(
        "smoothing-mlp",
        "icll_zoo_baselines.smoothing_mlp:SmoothingMlp",
        presets={code: {"code": code} for code in ("ratio", "count", "binary")},
        license="Apache-2.0",
        paper="arXiv:2401.12973",
    )
    register(
        "alergia",
        "icll_zoo_baselines.alergia:AlergiaLearner",
        license="Apache-2.0",
        paper="doi:10.1007/3-540-58473-0_144",
    )
