"""Text to token ids with any Hugging Face tokenizer, several times faster than its own batches where that is exact.

A byte-pair encoder cuts a text into words and encodes each word by itself, and most words have been seen before. So
texts are cut here, by the tokenizer's own pattern, and a dictionary holds the bytes of each word's ids: a document is
one lookup a word and one join. What cannot be cut for certain goes to the tokenizer itself, word or document:

    byte-level   the pre-tokenizer is ByteLevel, alone or after a Split by a pattern (GPT-2, Llama 3, Qwen)
    pieces       nothing cuts, or Metaspace without splitting, and no piece of the vocabulary has the mark of a space
                 behind anything else (Mistral, Llama 2): then no merge crosses the place before such a mark
    tokenizer    anything else, by `encode_batch_fast`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from icll_zoo import InputError, parse_json, read_text

FILE_LIMIT = 256 * 2**20
"""Bytes of a tokenizer.json."""
WORDS = 2_000_000
"""Words remembered by one process, at most; further ones are encoded each time they come."""
LONGEST = 64
"""Characters of a word worth remembering."""
MARK = "\u2581"
"""What stands for a space in sentencepiece's vocabularies."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How ByteLevel cuts by itself (Radford et al. 2019)."""
UNSURE = r"[\x1c-\x1f\p{Cn}]"
"""Characters on whose class two libraries, or two versions of Unicode, may not agree."""
ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>")
PADS = ("<pad>", "[PAD]", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>")


class Encoder:
    """A tokenizer.json as a function of texts.

    end: the token that closes each document; pad: the one that fills rows. None finds the usual ones; a vocabulary
    without padding gets a token of its own behind all others. kind: how texts are cut, as above.
    Special tokens that a text happens to spell are encoded as ordinary text: a document cannot forge its own end.
    Raises InputError for a file that is no tokenizer, or an end or a padding that it does not know.
    """

    def __init__(self, path: str | Path, end: str | None = None, pad: str | None = None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise InputError("tokenizing needs the package tokenizers", hint='pip install "icll-zoo[text]"') from error

        self.text = read_text(Path(path), "tokenizer", FILE_LIMIT)
        try:
            self.tokenizer = Tokenizer.from_str(self.text)
        except Exception as error:  # the library raises bare exceptions
            raise InputError(f"{str(path)!r} is no Hugging Face tokenizer: {error}", hint="a tokenizer.json") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.end, self.end_id = self._special("end", end, ENDS)
        self.pad, self.pad_id = self._padding(pad)
        self.vocab_size = max(self.size, self.pad_id + 1)
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self.kind, self._cut = self._cutter(read_json(self.text))
        if self.kind != "tokenizer":
            self._unsure, self._separators = regex(UNSURE), re.compile("[\x1c-\x1f]")
            self._known = Words(self._encode_word)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without an end, in the smallest type that holds the vocabulary."""
        if self.kind == "tokenizer":
            return [np.array(e.ids, self.dtype) for e in self._own(texts)]
        found: list[np.ndarray | None] = []
        waiting: list[int] = []
        for i, text in enumerate(texts):
            words = None if self._odd(text) else self._cut(text)
            if words is None:
                waiting.append(i)
                found.append(None)
            else:
                found.append(np.frombuffer(b"".join(map(self._known.__getitem__, words)), self.dtype))
        for i, own in zip(waiting, self._own([texts[i] for i in waiting]), strict=True):
            found[i] = np.array(own.ids, self.dtype)
        return [ids for ids in found if ids is not None]

    def reference(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same by the tokenizer itself: slow, and right by definition."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(e.ids, self.dtype) for e in encoded]

    def _own(self, texts: Sequence[str]) -> list[Any]:
        return self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False) if texts else []

    def _odd(self, text: str) -> bool:
        """Whether a text has characters that may be cut otherwise there."""
        return (self._separators if text.isascii() else self._unsure).search(text) is not None

    def _encode_word(self, word: str) -> bytes:
        if self.kind == "byte-level":
            word = "".join(map(BYTES.__getitem__, word.encode()))
        return np.array([token.id for token in self.tokenizer.model.tokenize(word)], self.dtype).tobytes()

    # -- what the tokenizer is ---------------------------------------------------------------------------------

    def _special(self, what: str, given: str | None, usual: Sequence[str]) -> tuple[str, int]:
        for token in usual if given is None else (given,):
            number = self.tokenizer.token_to_id(token)
            if number is not None:
                return token, number
        hint = f"name one of its tokens with --{what} TOKEN"
        raise InputError(
            f"the tokenizer has no token {given!r}" if given is not None else f"no token for the {what} is known",
            hint=hint,
        )

    def _padding(self, given: str | None) -> tuple[str, int]:
        if given is not None:
            token, number = self._special("pad", given, ())
            if number == self.end_id:
                raise InputError(f"padding and the end of documents are one token, {token!r}", hint="name another")
            return token, number
        for token in PADS:
            number = self.tokenizer.token_to_id(token)
            if number is not None:
                return token, number
        return PADS[0], self.size

    def _cutter(self, about: dict[str, Any]) -> tuple[str, Callable[[str], Any]]:
        """How texts are cut, and the function that cuts one, or says None if it is not sure."""
        other = ("tokenizer", list)
        model, added = about.get("model") or {}, about.get("added_tokens") or []
        if model.get("type") != "BPE" or model.get("dropout") or not all(t.get("special") for t in added):
            return other
        normalizer = self.tokenizer.normalizer
        normal = (lambda text: text) if normalizer is None else normalizer.normalize_str
        steps = steps_of(about.get("pre_tokenizer"))
        kinds = [step.get("type") for step in steps]
        affixes = [bool(model.get(name)) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
        if kinds in (["ByteLevel"], ["Split", "ByteLevel"]) and not any(affixes):
            pattern = byte_level_pattern(steps)
            if pattern is None or steps[-1].get("add_prefix_space", True):
                return other
            find = regex(pattern).findall

            def cut(text: str) -> Any:
                text = normal(text)
                words = find(text)
                # What no part of the pattern matches is a word of its own there, and lost here.
                return words if sum(map(len, words)) == len(text) else None

            return "byte-level", cut
        whole = not kinds or (kinds == ["Metaspace"] and not steps[0].get("split", True))
        if whole and not any(affixes) and marks_come_first(model.get("vocab") or {}):
            alone = re.escape(lonely(model)) or MARK  # in a class that has the mark already it says nothing
            find_pieces = regex(f"{MARK}*[^{MARK}{alone}]+|{MARK}+|[{alone}]+").findall
            pre = self.tokenizer.pre_tokenizer

            def pieces(text: str) -> Any:
                text = normal(text)
                if pre is not None:
                    text = "".join(piece for piece, _ in pre.pre_tokenize_str(text))
                return find_pieces(text)

            return "pieces", pieces
        return other


class Words(dict[str, bytes]):
    """The bytes of each word's ids; a new word is encoded, and remembered while there is room."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self.encode_word = encode

    def __missing__(self, word: str) -> bytes:
        ids = self.encode_word(word)
        if len(self) < WORDS and len(word) <= LONGEST:
            self[word] = ids
        return ids


def read_json(text: str) -> dict[str, Any]:
    """A tokenizer.json, which the library has accepted; larger than what `parse_json` takes."""
    try:
        return parse_json(text, "tokenizer")
    except InputError:
        return json.loads(text)


def regex(pattern: str) -> Any:
    """A compiled pattern with Unicode's classes, which Python's own `re` does not know."""
    try:
        import regex as library
    except ImportError as error:
        raise InputError("tokenizing needs the package regex", hint='pip install "icll-zoo[text]"') from error
    return library.compile(pattern)


def steps_of(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, one after the other."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return list(chain.from_iterable(steps_of(step) for step in pre_tokenizer.get("pretokenizers") or []))
    return [pre_tokenizer]


def byte_level_pattern(steps: list[dict[str, Any]]) -> str | None:
    """The one pattern that cuts, or None if there are two, or none that matches words as they are."""
    own = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2 if own else None
    split = steps[0]
    pattern = (split.get("pattern") or {}).get("Regex")
    if own or pattern is None or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    return pattern


def marks_come_first(vocabulary: dict[str, int]) -> bool:
    """Whether no piece has the mark of a space behind anything but such marks."""
    return all(MARK not in piece.lstrip(MARK) for piece in vocabulary)


def lonely(model: dict[str, Any]) -> str:
    """The ends of lines that no piece joins to anything, where each character has bytes to fall back on."""
    vocabulary = model.get("vocab") or {}
    if not model.get("byte_fallback") or any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        return ""  # unknown characters side by side may become one token
    joined = set(chain.from_iterable(piece for piece in vocabulary if len(piece) > 1))
    return "".join(character for character in "\n\r\t" if character not in joined)


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = byte_characters()
