"""The fast encoder gives the tokenizer's own ids, on anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from text_cases import some_texts, train_byte_level, train_pieces
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from icll_zoo import InputError
from icll_zoo_slimpajama.encoding import Encoder

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
STRANGE = [
    "",
    " ",
    "  a",
    "a  ",
    "\n\n\na\n",
    "\t x\r\ny",
    "▁a▁▁b ▁",
    "a\u00a0b\u2003c\u3000d\u200be",
    "a\x1cb\x1d\x1e\x1f c\x85d",
    "e\u0301 ﬁ Ⅷ ² ½ ٣ अ॒",
    "<|endoftext|> </s> <unk> <s> <pad>",
    "\u0378\U000e01f0 x\ufffe",
    "'S 'll'LL can't",
    "🙂👩‍👩‍👧" * 3,
    "x" * 500,
    "1234567890 12 3",
]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    folder, texts = tmp_path_factory.mktemp("tokenizers"), some_texts(300)
    return {
        "gpt2": Encoder(train_byte_level(folder / "gpt2.json", texts)),
        "llama3": Encoder(train_byte_level(folder / "llama3.json", texts, pattern=LLAMA3)),
        "mistral": Encoder(train_pieces(folder / "mistral.json", texts), pad="<unk>"),
    }


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "byte-level"), ("llama3", "byte-level"), ("mistral", "pieces")])
def test_the_fast_ids_are_the_tokenizers(encoders: dict[str, Encoder], name: str, kind: str) -> None:
    encoder = encoders[name]
    assert encoder.kind == kind
    texts = [*STRANGE, *some_texts(200, seed=1), *(a + b for a in STRANGE for b in STRANGE)]
    for _ in range(2):  # the second time from memory
        for text, fast, own in zip(texts, encoder.encode(texts), encoder.reference(texts), strict=True):
            assert fast.dtype == encoder.dtype
            assert np.array_equal(fast, own), text


@pytest.mark.parametrize("name", ["gpt2", "llama3", "mistral"])
def test_every_character_is_cut_as_the_tokenizer_cuts_it(encoders: dict[str, Encoder], name: str) -> None:
    """Two libraries' character classes, over every 53rd code point (all of the first 12,000) in three places."""
    encoder = encoders[name]
    points = [p for p in [*range(12_000), *range(12_000, 0x110000, 53)] if not 0xD800 <= p < 0xE000]
    texts = ["".join(f"a{chr(p)}b {chr(p)} {chr(p)}{chr(p)}1{chr(p)}" for p in points[i : i + 8])
             for i in range(0, len(points), 8)]  # fmt: skip
    wrong = [
        text
        for text, fast, own in zip(texts, encoder.encode(texts), encoder.reference(texts), strict=True)
        if not np.array_equal(fast, own)
    ]
    assert not wrong, ascii(wrong[0])


def test_a_text_cannot_forge_the_end_of_its_document(encoders: dict[str, Encoder]) -> None:
    for encoder in encoders.values():
        ids = np.concatenate(encoder.encode([f"a {encoder.end} b{encoder.end}", encoder.end]))
        assert encoder.end_id not in ids


def test_other_tokenizers_encode_by_themselves(tmp_path: Path) -> None:
    texts = some_texts(100)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(tmp_path / "t.json"))
    encoder = Encoder(tmp_path / "t.json")
    assert (encoder.kind, encoder.end, encoder.pad_id) == ("tokenizer", "[EOS]", encoder.size)
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(texts), encoder.reference(texts), strict=True))


def test_an_added_token_that_is_no_special_one_is_left_to_the_tokenizer(tmp_path: Path) -> None:
    path = train_byte_level(tmp_path / "t.json", some_texts(100))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["ba de"])
    tokenizer.save(str(path))
    encoder = Encoder(path)
    assert encoder.kind == "tokenizer"
    assert tokenizer.token_to_id("ba de") in encoder.encode(["x ba de y"])[0]


def test_many_ids_take_four_bytes(tmp_path: Path) -> None:
    path = train_byte_level(tmp_path / "t.json", some_texts(100))
    about = json.loads(path.read_text())
    vocabulary = about["model"]["vocab"]
    vocabulary |= {f"never {i}": i for i in range(len(vocabulary), 70_000)}
    path.write_text(json.dumps(about))
    encoder = Encoder(path)
    assert (encoder.dtype.itemsize, encoder.vocab_size) == (4, 70_001)
    texts = some_texts(20, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(texts), encoder.reference(texts), strict=True))


@pytest.mark.parametrize(
    ("words", "what"),
    [({"end": "<none>"}, "no token '<none>'"), ({"pad": "<|endoftext|>"}, "one token")],
)
def test_tokens_that_will_not_do_are_refused(tmp_path: Path, words: dict[str, str], what: str) -> None:
    path = train_byte_level(tmp_path / "t.json", some_texts(50))
    with pytest.raises(InputError, match=what):
        Encoder(path, **words)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="no Hugging Face tokenizer"):
        Encoder(tmp_path / "t.json")
