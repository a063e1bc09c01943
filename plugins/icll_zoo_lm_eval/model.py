"""The model `icll-zoo` of lm-eval: any model that the zoo loads, over that model's own vocabulary.

A text is tokens with white space between them, as `icll-zoo generate` prints them; a model whose vocabulary has no
texts reads and writes ids. What is scored follows the zoo's datasets: in `loglikelihood_rolling` neither the first
token, which nothing precedes, nor a token that is the separator or pad, so that the mean is the metric cross-entropy
(which counts no token beyond 23 nats).
`loglikelihood` scores every token of the continuation; an empty context is the separator, after which a string begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM
from torch import Tensor, nn

from icll_zoo import InputError, __version__, generate, load_model

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# What lm-eval's own models generate at most where a task does not say.
MAX_GEN_TOKS = 256


class ZooModel(LM):
    """`--model icll-zoo --model_args source=local-dir:PATH`, or a catalogue's name as the source.

    batch_size: sequences that are read together; "auto" is 64. model: one in memory, instead of a source.
    """

    def __init__(
        self,
        source: str | None = None,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (source is None) == (model is None):
            raise InputError("lm-eval's model icll-zoo needs a source", hint="--model_args source=local-dir:PATH")
        # lm-eval asks for "cuda" wherever nobody said otherwise, and its own models take what there is.
        self._device = torch.device(device if device and torch.cuda.is_available() else "cpu")
        self.model: Any = load_model(str(source), device=self._device) if model is None else model.eval()
        self.batch_size = 64 if str(batch_size).startswith("auto") else int(batch_size)
        vocabulary = self.model.zoo_vocabulary
        texts = vocabulary.tokens if vocabulary.tokens is not None else map(str, range(vocabulary.size))
        self.texts = list(texts)
        self.ids = {text: index for index, text in enumerate(self.texts)}
        self.pad_id, self.separator_id = vocabulary.pad_id, vocabulary.separator_id
        self.logits = getattr(self.model, "output", "logits") == "logits"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results."""
        return {
            "model_architecture": self.model.zoo_spec.architecture,
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "icll_zoo_version": __version__,
        }

    # -- requests ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether it is the most probable one."""
        pairs = [(self._context(context), self._encode(continuation)) for context, continuation in _args(requests)]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # Alternatives of one token after one context need that context read once.
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (context, continuation) in enumerate(pairs):
            if continuation:
                places[(*context, *continuation[:-1])].append(place)
        for row, logs in self._read(places):
            for place in places[row]:
                context, continuation = pairs[place]
                after = logs[len(context) - 1 :]
                wanted = torch.tensor(continuation)
                total = after.gather(1, wanted[:, None]).sum().item()
                answers[place] = total, bool((after.argmax(1) == wanted).all())
        return self._remember("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text's tokens but the first one, separators and pads."""
        texts = [self._encode(text) for (text,) in _args(requests)]
        answers = [0.0] * len(texts)
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, ids in enumerate(texts):
            if len(ids) > 1:
                places[tuple(ids)].append(place)
        for row, logs in self._read(places):
            wanted = torch.tensor(row[1:])
            total = logs[:-1].gather(1, wanted[:, None])[:, 0][scored(wanted, self.separator_id, self.pad_id)].sum()
            for place in places[row]:
                answers[place] = total.item()
        return self._remember("loglikelihood_rolling", requests, answers)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation up to the first of the texts `until`, or max_gen_toks tokens; greedy as asked."""
        answers = [""] * len(requests)
        alike: dict[str, list[int]] = defaultdict(list)
        settings = [_settings(given) for _, given in _args(requests)]
        for place, (_, how, _) in enumerate(settings):
            alike[repr(how)].append(place)
        for places in alike.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                contexts = [self._context(requests[place].args[0]) for place in batch]
                length, how, _ = settings[batch[0]]
                rows = generate(self.model, [torch.tensor(ids) for ids in contexts], length, **how)
                for place, ids, row in zip(batch, contexts, rows, strict=True):
                    text = " ".join(self.texts[i] for i in row[len(ids) :].tolist())
                    answers[place] = cut(text, settings[place][2])
        return self._remember("generate_until", requests, answers)

    # -- reading -------------------------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        words = text.split()
        for word in words:
            if word not in self.ids:
                raise InputError(f"{word[:60]!r} is no token of this model", hint="put white space between tokens")
        return [self.ids[word] for word in words]

    def _context(self, text: str) -> list[int]:
        """The ids of a context; never none."""
        if ids := self._encode(text):
            return ids
        if self.separator_id is None:
            raise InputError("this model has no separator, so that nothing can stand for an empty context")
        return [self.separator_id]

    @torch.inference_mode()
    def _read(self, rows: Iterable[tuple[int, ...]]) -> Iterable[tuple[tuple[int, ...], Tensor]]:
        """Each row of ids with the log-probabilities (l, v) after each of its tokens, in float64 on the CPU."""
        ordered = sorted(rows, key=len, reverse=True)
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            tokens = torch.full((len(batch), len(batch[0])), self.pad_id, dtype=torch.int64)
            for index, row in enumerate(batch):
                tokens[index, : len(row)] = torch.tensor(row)
            output = self.model(tokens.to(self._device)).double().cpu()
            logs = output.log_softmax(-1) if self.logits else output.log()
            for index, row in enumerate(batch):
                yield row, logs[index, : len(row)]

    def _remember(self, kind: str, requests: Sequence[Instance], answers: list[Any]) -> list[Any]:
        """The answers, also put into lm-eval's cache where it keeps one."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers


def scored(tokens: Tensor, separator_id: int | None, pad_id: int) -> Tensor:
    """Which tokens are in the loss where they are predicted, bool."""
    special = tokens == pad_id
    return ~special if separator_id is None else ~(special | (tokens == separator_id))


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stops, without white space around it."""
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text.strip()


def _args(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


def _settings(given: dict[str, Any]) -> tuple[int, dict[str, Any], list[str]]:
    """How many tokens, the keywords of `icll_zoo.generate`, and where to stop, of lm-eval's generation settings."""
    left = dict(given)
    until = left.pop("until", None) or []
    length = int(left.pop("max_gen_toks", MAX_GEN_TOKS))
    temperature = float(left.pop("temperature", 0.0) or 0.0)
    sampled = bool(left.pop("do_sample", temperature > 0))
    how: dict[str, Any] = {"greedy": True}
    top_k, top_p, seed = left.pop("top_k", None), left.pop("top_p", None), left.pop("seed", 0)
    if sampled:
        how = {"temperature": temperature or 1.0, "top_k": top_k or None, "top_p": top_p, "seed": seed}
    if left:
        raise InputError(f"the task asks for the generation setting {next(iter(left))!r}, which is not known here")
    return length, how, [until] if isinstance(until, str) else list(until)
