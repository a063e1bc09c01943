"""A config.json of transformers, taken key by key: each is represented, without effect on the logits, or refused.

The file is a stranger's. Sizes are bounded before anything is built from them, as those of icll-zoo's own config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from icll_zoo import InputError

# The bounds that icll-zoo sets to its own configuration.
LAYERS, WIDTH, LENGTH, VOCABULARY = 1000, 2**16, 2**24, 2**24
REQUIRED: Any = object()

# Keys of every model of transformers that say nothing about what the logits are.
NEUTRAL = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "_name_or_path", "name_or_path",
    "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate", "torchscript", "id2label",
    "label2id", "problem_type", "chunk_size_feed_forward", "tokenizer_class", "task_specific_params",
    "_attn_implementation_autoset",
})  # fmt: skip


def shown(value: Any) -> str:
    """A stranger's value on one line, of bounded length and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:79] + "…"


class Settings:
    """The keys of one configuration. Methods take them out; `done` raises InputError with every fault found.

    A key whose value is null counts as absent, as in transformers. After a fault a method returns a harmless value.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, neutral: Iterable[str] = ()) -> None:
        self.left = {key: value for key, value in raw.items() if value is not None}
        self.where = where
        self.neutral = NEUTRAL | set(neutral)
        self.faults: list[str] = []

    def count(self, name: str, most: int, default: Any = REQUIRED) -> int:
        """A whole number from 1 to `most`."""
        value = self._take(name, default, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            return self._refuse(name, value, f"a whole number from 1 to {most}", 1)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number above 0."""
        value = self._take(name, default, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            return self._refuse(name, value, "a number above 0", 1.0)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._take(name, default, default)
        return value if isinstance(value, bool) else self._refuse(name, value, "true or false", default)

    def only(self, name: str, *values: Any) -> None:
        """Refuse the key unless it is absent or has one of these values: the zoo's model knows no other."""
        value = self.left.pop(name, None)
        if value is not None and not any(type(value) is type(known) and value == known for known in values):
            self._refuse(name, value, " or ".join(map(shown, values)), None)

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping, empty if absent."""
        value = self.left.pop(name, {})
        return dict(value) if isinstance(value, Mapping) else self._refuse(name, value, "a mapping", {})

    def done(self) -> None:
        """Raise InputError with the faults; a key that nobody took is one."""
        unknown = sorted(key for key in self.left if key not in self.neutral)
        self.faults += [
            f"{self.where} sets {shown(k)} to {shown(self.left[k])}, which has no meaning here" for k in unknown
        ]
        if self.faults:
            raise InputError(self.faults[0], hint="its logits would not be the model's", faults=self.faults)

    def _take(self, name: str, default: Any, harmless: Any) -> Any:
        if name not in self.left and default is REQUIRED:
            self.faults.append(f"{self.where} lacks the key {name!r}")
            return harmless
        return self.left.pop(name, default)

    def _refuse(self, name: str, value: Any, wanted: str, harmless: Any) -> Any:
        self.faults.append(f"{self.where} sets {name!r} to {shown(value)}, and only {wanted} can be represented")
        return harmless


def require(options: Mapping[str, Any], target: str, **wanted: tuple[Any, ...]) -> None:
    """Raise InputError, with every fault, unless each option of a zoo's model has one of the values given."""
    faults = [
        f"{target} cannot represent the option {name}={options.get(name)!r}, only {' or '.join(map(repr, values))}"
        for name, values in wanted.items()
        if options.get(name) not in values
    ]
    if faults:
        raise InputError(faults[0], faults=faults)
