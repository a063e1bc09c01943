"""What n-gram heads do for text: six small language models, with and without them, as a sweep.

    python benchmarks/text_corpus.py corpus
    icll-zoo prepare-text corpus tokens --split folder --tokenizer corpus/tokenizer.json
    icll-zoo sweep benchmarks/text_heads.py --output text-heads
    icll-zoo compare local-dir:text-heads/RUN/model local-dir:text-heads/RUN/model text data.folder=tokens \\
        data.length=512 data.held_out=150 --metrics perplexity,bits-per-byte,in-context-2gram-loss,new-2gram-loss

The corpus is that of the packages that are installed, so perplexities are compared within it. A hybrid has heads of
orders 1, 2 and 3 behind its first block in place of one of its four. About an hour a model on one core that has bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import icll_zoo as zoo

HEADS = [{"mixer": "ngram-head", "order": order, "mlp_ratio": 1} for order in (1, 2, 3)]
# The ratio makes blocks of like size: retention's values are twice as wide.
MLP_RATIOS = {"transformer-rope": 8 / 3, "gla": 8 / 3, "retnet": 4 / 3}


def described(architecture: str, layers: list[dict[str, Any]]) -> zoo.Run:
    """20.07 million tokens: 2,450 updates of 16 rows of 512."""
    options = {"d_model": 256, "norm": "rmsnorm", "mlp": "swiglu", "dropout": 0.0, "layers": layers}
    held = {"evaluation": "packed", "held_out": 128}
    return zoo.Run.parse(
        {
            "architecture": architecture,
            "dataset": "text",
            "model": options,
            "data": {"folder": "tokens", "length": 512, **held},
            "steps": 2450,
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
            "schedule": {"warmup": 0.05},
            "train": {
                "batch_size": 16,
                "precision": "bf16",
                "threads": 1,
                "validate_every": 350,
                "checkpoint_every": 100,
            },
        }
    )


def runs() -> Iterator[zoo.Run]:
    for architecture, ratio in MLP_RATIOS.items():
        block = {"mixer": architecture, "n_heads": 4, "mlp_ratio": ratio}
        yield described(architecture, [block] * 4)
        yield described(architecture, [block, *HEADS, block, block])
