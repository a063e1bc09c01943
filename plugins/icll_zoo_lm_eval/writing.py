"""A dataset as two tasks of lm-eval: JSON lines, and the YAML that says what to do with them.

perplexity    the perplexity of every sequence of a split; its logarithm is the zoo's metric cross-entropy
next-token    after each whole sequence, is the most probable token one that may follow? multiple choice, and only
              where the dataset knows what may follow
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from icll_zoo import IGNORED, EnvironmentFault, InputError

if TYPE_CHECKING:
    from icll_zoo import Batch, Dataset, Split

BATCH = 64
COMMON = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
"""
PERPLEXITY = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
process_results: !function icll_zoo_lm_eval.task.perplexity
metric_list:
  - metric: token_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
metadata:
  version: 1
"""
NEXT_TOKEN = """\
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: may_follow
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def write_tasks(dataset: Dataset, folder: Path, prefix: str, split: Split, limit: int | None) -> list[str]:
    """Write the tasks' files into a new or empty folder; their names, `prefix`-perplexity and `prefix`-next-token.

    limit: the number of sequences of an endless split, or of the first ones of a finite split.
    Raises InputError for a dataset whose tokens or targets a text cannot carry, EnvironmentFault if writing fails.
    """
    texts = list(dataset.vocabulary)
    if bad := next((text for text in texts if text.split() != [text]), None):
        raise InputError(f"the dataset's token {bad!r} cannot be told apart in a text with spaces between tokens")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"cannot write tasks to {str(folder)!r}: it is there", hint="name a new or empty folder")
    perplexity, following = [], []
    for batch in batches(dataset, split, limit):
        check_targets(dataset, batch)
        truth = dataset.oracle(batch)
        for row in range(len(batch)):
            ids = batch.tokens[row][batch.valid[row]].tolist()
            targets = batch.targets[row, : len(ids)].tolist()
            context, last = " ".join(texts[i] for i in ids), targets[-1]
            # The last token of a sequence is only predicted, never read.
            text = context if last == IGNORED else f"{context} {texts[last]}"
            scored = sum(target != IGNORED for target in targets)
            perplexity.append({"text": text, "scored": scored, "group": int(batch.group[row])})
            if truth is not None:
                may_follow = truth[row, len(ids) - 1].nonzero()[:, 0].tolist()
                following.append({"text": context, "choices": texts, "may_follow": may_follow})
    tasks = {"perplexity": (perplexity, PERPLEXITY), "next-token": (following, NEXT_TOKEN)}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (documents, form) in tasks.items():
            if not documents:
                continue
            lines = folder / f"{name}.jsonl"
            lines.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
            task = f"{prefix}-{name}"
            head = COMMON.format(task=json.dumps(task), file=json.dumps(str(lines.resolve())))
            (folder / f"{name}.yaml").write_text(head + form, encoding="utf-8")
            written.append(task)
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return written


def batches(dataset: Dataset, split: Split, limit: int | None) -> Iterator[Batch]:
    """One pass over a split in the order of storage."""
    size = dataset.size(split)
    if size is None and limit is None:
        raise InputError(f"the {split} split is endless", hint="set --limit")
    total = min(s for s in (size, limit) if s is not None)
    for k, start in enumerate(range(0, total, BATCH)):
        yield dataset.batch(split, k, BATCH, 0 if size is None else None).first(min(BATCH, total - start))


def check_targets(dataset: Dataset, batch: Batch) -> None:
    """Raise InputError unless the loss takes every next token but separators and pads: what a text can say."""
    special = torch.tensor([i for i in (dataset.pad_id, dataset.separator_id) if i is not None])
    nothing = torch.zeros_like(batch.valid[:, :1])
    follows = torch.cat([batch.valid[:, 1:], nothing], 1)
    following = torch.cat([batch.tokens[:, 1:], batch.tokens[:, :1]], 1)
    wanted = following.masked_fill(torch.isin(following, special), IGNORED)
    # Behind the last token of a row stands one more, or nothing.
    last = batch.valid & ~torch.isin(batch.targets, special)
    right = torch.where(follows, batch.targets == wanted, last | (batch.targets == IGNORED))
    if not right.all():
        raise InputError("the dataset's loss is not on every next token, so that its perplexity cannot be a text's")
