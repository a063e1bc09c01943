"""Activations by name, parts replaced, and nothing of either left on the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from icll_zoo.errors import InputError
from icll_zoo.tracing import replaced, trace
from icll_zoo.zoo import create_model

VOCAB = 20


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def make(name: str = "transformer", **options):
    torch.manual_seed(0)
    return create_model(name, **{"d_model": 16, "n_layers": 3, **options})


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_residual_stream_adds_up_from_its_parts():
    model = make()
    found = model.trace(tokens(), "dropout", "blocks.*", "blocks.*.mixer", "blocks.*.mlp", "")
    stream = found["dropout"]
    for layer in range(3):
        stream = stream + found[f"blocks.{layer}.mixer"]
        stream = stream + found[f"blocks.{layer}.mlp"]
        torch.testing.assert_close(found[f"blocks.{layer}"], stream)
    torch.testing.assert_close(found[""], model.eval()(tokens()))
    assert list(found)[:4] == ["dropout", "blocks.0.mixer", "blocks.0.mlp", "blocks.0"]
    assert len(found) == 11


def test_a_star_stays_within_one_part_of_a_name():
    found = make().trace(tokens(), "blocks.*", "blocks.[02].mixer.q?v")
    assert sorted(found) == ["blocks.0", "blocks.0.mixer.qkv", "blocks.1", "blocks.2", "blocks.2.mixer.qkv"]


@pytest.mark.parametrize(
    "name",
    ["transformer", "transformer-rope", "linear-transformer", "retnet", "gla", "lstm", "mamba", "ngram-head", "s4d"],
)
def test_every_architecture_can_be_traced(name):
    options = {"n_heads": 2} if name == "transformer-rope" else {}
    found = make(name, **options).trace(tokens(), "blocks.*.mixer", "blocks.*")
    assert all(tensor.shape == (2, 9, 16) and tensor.isfinite().all() for tensor in found.values())
    assert len(found) == 6


def test_inputs_are_traced_too():
    found = make().trace(tokens(), "blocks.0.mixer:input", "blocks.0.norm", "norm:input", "blocks.2")
    assert torch.equal(found["blocks.0.mixer:input"], found["blocks.0.norm"])
    assert torch.equal(found["norm:input"], found["blocks.2"])


def test_the_model_is_as_it_was_also_after_an_error():
    model = make(dropout=0.5)
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    first, second = (model.trace(tokens(), "blocks.*")["blocks.2"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), generator)

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.trace(tokens(), "blocks.*", "blocks.*.mixer:attention", replace={"blocks.1.mlp": broken})
    assert [module.training for module in model.modules()] == modes
    assert hooks(model) == 0
    assert torch.is_grad_enabled()
    with pytest.raises(InputError):
        model.trace(tokens(), "blocks.*", replace={"blocks.0": torch.zeros_like, "nothing": torch.zeros_like})
    assert hooks(model) == 0


def test_gradients_only_where_they_are_asked_for():
    model = make()
    assert not model.trace(tokens(), "blocks.1")["blocks.1"].requires_grad
    model.trace(tokens(), "blocks.1", detach=False)["blocks.1"].square().sum().backward()
    assert model.blocks[1].mixer.qkv.weight.grad.abs().sum() > 0
    assert model.blocks[2].mixer.qkv.weight.grad is None


class InPlace(nn.Module):
    """Writes into the output of its own part, and runs that part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3)
        self.idle = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(x).zero_())


def test_what_is_written_in_place_later_and_what_runs_twice():
    model, x = InPlace(), torch.randn(2, 3)
    found = trace(model, x, "part")
    assert list(found) == ["part", "part#2"]
    torch.testing.assert_close(found["part"], model.part(x))
    torch.testing.assert_close(found["part#2"], model.part.bias.expand(2, 3))


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def test_a_part_that_gives_a_tuple_is_traced_as_one():
    out, (h, c) = trace(Tuple(), torch.randn(2, 5, 4), "lstm")["lstm"]
    assert torch.equal(out[:, -1], h[0])
    assert c.shape == (1, 2, 4)
    assert not out.requires_grad


def test_replacing_a_mixer_by_zeros_takes_it_out_of_the_stream():
    model = make().eval()
    found = model.trace(
        tokens(), "dropout", "blocks.0", "blocks.0.mlp", "", replace={"blocks.0.mixer": torch.zeros_like}
    )
    torch.testing.assert_close(found["blocks.0"], found["dropout"] + found["blocks.0.mlp"])
    before = model(tokens())
    with replaced(model, {"blocks.0.mixer": torch.zeros_like}):
        assert torch.equal(model(tokens()), found[""])
    assert torch.equal(model(tokens()), before)
    assert not torch.allclose(found[""], before)


def test_patching_another_run_s_stream_gives_that_run_s_output():
    model = make().eval()
    other = tokens().flip(0)
    patch = model.trace(other, "blocks.1")["blocks.1"]
    found = model.trace(tokens(), "", "blocks.1", replace={"blocks.1": lambda _: patch})
    torch.testing.assert_close(found[""], model(other))
    assert torch.equal(found["blocks.1"], patch)


def test_replacing_an_input_reaches_the_module_alone():
    model = make().eval()
    found = model.trace(
        tokens(), "blocks.1", "blocks.1.mixer", "blocks.1.norm", replace={"blocks.1.mixer:input": torch.zeros_like}
    )
    zero = model.blocks[1].mixer(torch.zeros(2, 9, 16))
    torch.testing.assert_close(found["blocks.1.mixer"], zero)
    assert found["blocks.1.norm"].abs().sum() > 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("blocks.*.mixr",), "'blocks.0.mixer'"),
        (("blocks.7",), "nearest are 'blocks"),
        (("blocks.*", "heads"), "no module matches 'heads' .*'head'"),
        (("blocks",), "nothing that matches 'blocks' ran"),
        (("blocks.*.mlp:attention",), "no module that matches .* has attention_weights"),
        (("blocks.0:outputs",), "NAME:input"),
        ((), "no pattern"),
    ],
)
def test_what_matches_nothing_is_an_error_that_names_the_nearest(patterns, words):
    with pytest.raises(InputError, match=words):
        make().trace(tokens(), *patterns)


def test_a_function_that_returns_nothing_is_an_error():
    with pytest.raises(InputError, match="returned None"):
        make().trace(tokens(), "blocks.0", replace={"blocks.0": lambda x: None})
    with pytest.raises(InputError, match="cannot be replaced"):
        make().trace(tokens(), "blocks.0", replace={"blocks.0.mixer:attention": torch.zeros_like})


# -- attention -------------------------------------------------------------------------------------------------------

WITH_ATTENTION = {
    "transformer": {"n_heads": 4},
    "transformer-rope": {"n_heads": 4, "n_kv_heads": 2},
    "linear-transformer": {"n_heads": 2},
    "retnet": {"n_heads": 2},
    "retnet-paper": {"n_heads": 2},
    "gla": {"n_heads": 2},
}


def of_values(name: str, mixer, weights: Tensor, x: Tensor) -> Tensor:
    """The mixer's output from its weights and its own values."""
    if name.startswith("transformer"):
        _, _, v = mixer._project(x, 0) if name == "transformer-rope" else mixer._project(x)
        v = mixer._repeat(v) if name == "transformer-rope" else v
    elif name == "linear-transformer":
        _, _, v = mixer._project(x)
    else:
        v = mixer.v_proj(x).unflatten(-1, (mixer.n_heads, mixer.d_v))
    o = torch.einsum("bhij,bjhd->bihd", weights, v)
    if name.startswith("retnet") or name == "gla":
        gate = nn.functional.silu(mixer.g_proj(x))
        return mixer.out_proj(gate * nn.functional.layer_norm(o, o.shape[-1:]).flatten(2))
    return mixer.out_proj(o.flatten(2))


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_weights_times_values_are_what_the_mixer_computes(name):
    model = make(name, **WITH_ATTENTION[name]).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)  # fresh weights are so small that every softmax is nearly uniform
    found = model.trace(tokens(), "blocks.*.mixer:attention", "blocks.*.mixer:input", "blocks.*.mixer")
    for layer, block in enumerate(model.blocks):
        weights = found[f"blocks.{layer}.mixer:attention"]
        assert weights.shape == (2, WITH_ATTENTION[name]["n_heads"], 9, 9)
        assert not weights.triu(1).any()
        if name.startswith("transformer"):
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        x, y = found[f"blocks.{layer}.mixer:input"], found[f"blocks.{layer}.mixer"]
        torch.testing.assert_close(of_values(name, block.mixer, weights, x), y, rtol=1e-6, atol=1e-8)


def test_attention_is_traced_beside_the_parts_it_runs_through():
    found = make().trace(tokens(), "blocks.0.mixer.qkv", "blocks.0.mixer:attention")
    assert sorted(found) == ["blocks.0.mixer.qkv", "blocks.0.mixer:attention"]


def test_the_attention_of_an_n_gram_head_is_its_matches():
    ids = torch.tensor([[1, 2, 1, 3, 1, 2]])
    found = make("ngram-head", order=1, n_layers=1).trace(ids, "blocks.0.mixer:attention")
    weights = found["blocks.0.mixer:attention"][0, 0]
    wanted = torch.zeros(6, 6)
    wanted[2, 1] = 1  # a again: its first successor
    wanted[4, [1, 3]] = 0.5
    wanted[5, 2] = 1
    assert torch.equal(weights, wanted)


def test_a_hybrid_gives_the_attention_of_those_that_have_one():
    torch.manual_seed(0)
    layers = [{"mixer": "lstm"}, {"mixer": "transformer", "n_heads": 2}]
    model = create_model("transformer", d_model=16, layers=layers)
    assert list(model.trace(tokens(), "blocks.*.mixer:attention")) == ["blocks.1.mixer:attention"]
