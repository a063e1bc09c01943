from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import icll_zoo
from icll_zoo.errors import InputError, UnknownName
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo


class Scale(nn.Module):
    """Multiply by a number: the smallest mixer with an option."""

    def __init__(self, d_model: int, layer_index: int, factor: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), factor))
        self.layer_index = layer_index

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Shift(nn.Module):
    """Look one token back; takes the ids too."""

    def __init__(self, d_model: int, vocab_size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, d_model)
        self.gain = gain

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) * self.gain + self.table(tokens)


class Uniform(nn.Module):
    output = "probabilities"

    def __init__(self, vocab_size: int, separator_id: int | None, temperature: float = 1.0) -> None:
        super().__init__()
        self.vocab_size, self.separator_id = vocab_size, separator_id

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.full((*tokens.shape, self.vocab_size), 1 / self.vocab_size)


@pytest.fixture
def zoo() -> Zoo:
    made = Zoo()
    made.register("mixer", "scale", Scale, presets={"big": {"factor": 10.0, "d_model": 16}}, backbone={"norm": "none"})
    made.register("mixer", "shift", Shift)
    made.register("architecture", "uniform", Uniform)
    return made


def test_a_mixer_becomes_a_language_model_of_its_name(zoo: Zoo) -> None:
    model = zoo.create_model("scale", vocab_size=7, d_model=8, n_layers=3, factor=3.0)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 7)
    assert [block.mixer.layer_index for block in model.blocks] == [0, 1, 2]
    assert torch.equal(model.blocks[1].mixer.weight, torch.full((8,), 3.0))
    assert model.zoo_spec.architecture == "script:scale"
    assert model.zoo_spec.options["norm"] == "none"


def test_a_preset_sets_options_and_stands_for_the_same_architecture(zoo: Zoo) -> None:
    spec = zoo.resolve_model("scale-big")
    assert spec.architecture == "script:scale"
    assert (spec.options["factor"], spec.options["d_model"]) == (10.0, 16)
    assert zoo.resolve_model("scale-big", {"factor": 1.0}).options["factor"] == 1.0


def test_layers_mix_mixers_and_give_each_its_options(zoo: Zoo) -> None:
    layers = ["scale", {"mixer": "shift", "mlp_ratio": 1}, {"mixer": "scale", "factor": 5.0}]
    model = zoo.create_model("scale", d_model=8, layers=layers, factor=4.0, gain=0.5)
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Scale", "Shift", "Scale"]
    assert model.blocks[0].mixer.weight[0] == 4.0
    assert model.blocks[2].mixer.weight[0] == 5.0
    assert model.blocks[1].mixer.gain == 0.5
    assert model.blocks[1].mlp.up.out_features == 8
    assert model.blocks[0].mlp.up.out_features == 32
    resolved = model.zoo_spec.options["layers"]
    assert resolved[1] == {"mixer": "script:shift", "mlp_ratio": 1.0, "gain": 0.5}


def test_a_preset_as_a_layer_brings_the_mixer_s_options_and_none_of_the_backbone_s(zoo: Zoo) -> None:
    spec = zoo.resolve_model("scale", {"d_model": 8, "layers": ["scale-big", {"mixer": "scale-big", "factor": 3.0}]})
    assert spec.options["d_model"] == 8
    assert [layer["factor"] for layer in spec.options["layers"]] == [10.0, 3.0]
    assert {layer["mixer"] for layer in spec.options["layers"]} == {"script:scale"}


def test_a_resolved_description_resolves_to_itself(zoo: Zoo) -> None:
    for spec in (
        zoo.resolve_model("scale-big"),
        zoo.resolve_model("scale", {"layers": ["scale", "shift"], "factor": 2.5}),
        zoo.resolve_model("uniform"),
    ):
        assert zoo.resolve_model(spec.architecture, spec.options) == spec


def test_an_architecture_is_handed_what_it_names(zoo: Zoo) -> None:
    model = zoo.create_model("uniform", vocabulary=Vocabulary(9, None, 0, 8))
    assert (model.vocab_size, model.separator_id) == (9, 8)
    assert model.zoo_spec.options == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("scael", {}, "unknown model 'scael' (did you mean 'scale'?)"),
        ("scale", {"facter": 1.0}, "unknown option 'facter' in model 'scale' (did you mean 'factor'?)"),
        ("scale", {"factor": "x"}, "wrong value in model 'scale'.factor"),
        ("scale", {"d_model": 0}, "0 is not at least 1"),
        ("scale", {"dropout": 1.0}, "not in [0, 1)"),
        ("scale", {"norm": "batchnorm"}, "input should be 'layernorm', 'rmsnorm' or 'none', not 'batchnorm'"),
        ("scale", {"layers": []}, "layers is empty"),
        ("scale", {"layers": [{"order": 1}]}, "layers[0] names no mixer"),
        ("scale", {"layers": ["scale", "uniform"]}, "layers[1]: 'uniform' is not a mixer"),
        ("scale", {"layers": ["scale"], "gain": 2.0}, "neither the backbone nor any layer takes it"),
        (
            "scale",
            {"layers": [{"mixer": "scale", "facter": 2.0}]},
            "unknown option 'facter' in model 'scale'.layers[0]",
        ),
        ("scale", {"layers": ["scale"], "n_layers": 3}, "n_layers=3 and lists 1 layers"),
        ("uniform", {"d_model": 3}, "unknown option 'd_model' in model 'uniform'"),
        ("nobody:scale", {}, "no plugin 'nobody' is installed"),
    ],
)
def test_bad_options_say_what_and_where(zoo: Zoo, name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        zoo.create_model(name, **options)
    assert words in str(caught.value)


def test_a_mixer_option_with_a_name_of_the_backbone_s_is_refused(zoo: Zoo) -> None:
    class Bad(nn.Module):
        def __init__(self, d_model: int, dropout: float = 0.1) -> None:
            super().__init__()

    with pytest.raises(InputError, match="option 'dropout', which is the backbone's"):
        zoo.register("mixer", "bad", Bad)


def test_the_first_mixer_keeps_its_own_initialisation(zoo: Zoo) -> None:
    class Random(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.linear = nn.Linear(d_model, d_model)
            nn.init.normal_(self.linear.weight, std=3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    zoo.register("mixer", "random", Random)
    torch.manual_seed(5)
    alone = Random(8)
    torch.manual_seed(5)
    inside = zoo.create_model("random", d_model=8).blocks[0].mixer
    assert torch.equal(alone.linear.weight, inside.linear.weight)
    assert torch.equal(alone.linear.bias, inside.linear.bias)


def test_a_script_registers_under_script(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import icll_zoo as zoo\nfrom torch import nn\n"
        "@zoo.register_mixer('mine-here')\n"
        "class Mine(nn.Identity):\n    def __init__(self, d_model): super().__init__()\n"
    )
    default = default_zoo()
    with pytest.raises(UnknownName, match="--load FILE"):
        default.entry("model", "script:mine-here")
    default.load_script(script)
    assert default.entry("model", "mine-here").qualified == "script:mine-here"
    assert icll_zoo.create_model("mine-here", n_layers=1)(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 20)


def test_a_broken_script_says_its_line(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("x = 1\nraise RuntimeError('here')\n")
    with pytest.raises(InputError, match="line 2 failed: RuntimeError: here"):
        Zoo().load_script(script)


def test_everything_installed_can_be_listed_and_resolved() -> None:
    default = default_zoo()
    for entry in default.list("model"):
        assert default.resolve_model(entry.qualified).version >= 1
    for entry in default.list("dataset"):
        assert default.resolve_options("dataset", entry.qualified) is not None
