"""The language model around a stack of mixers, with small mixers of the tests' own."""

from __future__ import annotations

import itertools

import pytest
import torch
from mixers import CumulativeSum, Stateless, UniformAttention, zoo_of_tests
from torch import nn

from icll_zoo.backbone import Backbone, BackboneOptions
from icll_zoo.errors import InputError

VOCAB = 11


def create(name="sum", **options):
    torch.manual_seed(0)
    return zoo_of_tests().create_model(name, VOCAB, **{"d_model": 16, "n_layers": 2, **options})


def tokens(batch=2, length=9):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


CHOICES = {
    "positions": ["none", "learned"],
    "norm": ["layernorm", "rmsnorm", "none"],
    "mlp": ["gelu", "swiglu", "rwkv", "none"],
    "tie": [True, False],
    "residual": [True, False],
}


@pytest.mark.parametrize("norm", CHOICES["norm"])
@pytest.mark.parametrize("mlp", CHOICES["mlp"])
def test_every_combination_of_options_trains_and_steps_as_it_reads(norm, mlp):
    for positions, tie, residual in itertools.product(CHOICES["positions"], CHOICES["tie"], CHOICES["residual"]):
        model = create(norm=norm, mlp=mlp, positions=positions, tie=tie, residual=residual)
        output = model(tokens())
        assert output.shape == (2, 9, VOCAB)
        output.logsumexp(-1).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert (model.head.weight is model.embedding.weight) is tie
        assert (model.positions is not None) is (positions == "learned")
        model.eval()
        whole = model(tokens())
        y1, state = model.step(tokens()[:, :4], model.init_state(2))
        y2, state = model.step(tokens()[:, 4:5], state)
        y3, _ = model.step(tokens()[:, 5:], state)
        torch.testing.assert_close(torch.cat([y1, y2, y3], 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "uniform"])
def test_step_in_any_pieces_equals_forward(name):
    model = create(name, mlp="rwkv", positions="learned").eval()
    whole = model(tokens())
    for first in range(1, 9):
        y1, state = model.step(tokens()[:, :first], model.init_state(2))
        before = {key: tensor.clone() for key, tensor in state.items()}
        y2, _ = model.step(tokens()[:, first:], state)
        torch.testing.assert_close(torch.cat([y1, y2], 1), whole, rtol=1e-5, atol=1e-6)
        for key, tensor in state.items():
            assert torch.equal(tensor, before[key]), "a step must not change the state that it was given"


def test_the_state_is_batch_first_and_named_by_its_place():
    state = create(mlp="rwkv", positions="learned").init_state(3)
    assert set(state) == {
        "position",
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("mixer.sum", "mlp.before")),
    }
    assert all(tensor.size(0) == 3 for tensor in state.values())


def test_rows_of_a_batch_are_independent_and_may_be_at_different_places():
    """Two sequences continued together from states of their own, as one batch."""
    model = create(positions="learned").eval()
    one, two = tokens(1, 9), tokens(2, 9)[1:]
    _, state_one = model.step(one[:, :3], model.init_state(1))
    _, state_two = model.step(two[:, :6], model.init_state(1))
    both = {key: torch.cat([state_one[key], state_two[key]]) for key in state_one}
    together, _ = model.step(torch.cat([one[:, 3:5], two[:, 6:8]]), both)
    expected = torch.cat([model(one[:, :5])[:, 3:], model(two[:, :8])[:, 6:]])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "uniform", "stateless"])
@pytest.mark.parametrize("mlp", CHOICES["mlp"])
def test_no_output_depends_on_a_later_token(name, mlp):
    model = create(name, mlp=mlp).eval()
    changed = tokens().clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCAB
    before, after = model(tokens()), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-4)


def test_mixers_keep_their_own_initialisation():
    """Bit by bit: the first mixer equals the same mixer built alone from the same seed."""
    torch.manual_seed(5)
    alone = CumulativeSum(16)
    torch.manual_seed(5)
    model = zoo_of_tests().create_model("sum", VOCAB, d_model=16, n_layers=3)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(model.blocks[0].mixer.state_dict()[name], tensor)
    for block in model.blocks:
        product = block.mixer.proj.weight @ block.mixer.proj.weight.T
        torch.testing.assert_close(product, torch.eye(16), rtol=0, atol=1e-5)


def test_initial_scales():
    model = create(d_model=256, n_layers=8, tie=False, positions="learned")
    for embedding in (model.embedding.weight, model.head.weight, model.positions.weight):
        assert embedding.std().item() == pytest.approx(0.02, rel=0.1)
    for block in model.blocks:
        assert block.mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 1 / sqrt(2 * 8 layers)
        assert not block.mlp.up.bias.any()


@pytest.mark.parametrize("read", ["forward", "step"])
def test_learned_positions_end(read):
    model = create(positions="learned", max_length=8)
    run = model if read == "forward" else lambda t: model.step(t, model.init_state(2))
    run(tokens(length=8))
    with pytest.raises(InputError, match=r"9 tokens .* 8 learned positions .*max_length=9"):
        run(tokens(length=9))
    _, state = model.step(tokens(length=8), model.init_state(2))
    with pytest.raises(InputError, match="9 tokens"):
        model.step(tokens(length=1), state)


def test_without_positions_there_is_no_longest_sequence():
    assert create(max_length=8).eval()(tokens(length=50)).shape == (2, 50, VOCAB)


def test_layers_of_several_mixers_with_widths_of_their_own():
    model = create(
        n_layers=3,
        layers=["sum", {"mixer": "uniform", "mlp_ratio": 1.0}, {"mixer": "sum", "gain": 0.5, "mlp_ratio": 0.0}],
    )
    assert [type(block.mixer) for block in model.blocks] == [CumulativeSum, UniformAttention, CumulativeSum]
    assert [block.mlp and block.mlp.up.out_features for block in model.blocks] == [64, 16, None]
    assert model.state_grows
    assert model.has_step
    assert not create("sum").state_grows


def test_one_mixer_without_a_step_is_enough_to_have_none():
    assert not create(layers=["sum", "stateless"]).has_step


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = create(dropout=0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


def test_no_residual_replaces_the_stream():
    torch.manual_seed(0)
    options = BackboneOptions(d_model=8, n_layers=1, norm="none", mlp="none", residual=False, dropout=0.0)
    mixer = Stateless(8)
    model = Backbone([mixer], [0.0], VOCAB, options)
    expected = mixer(model.embedding(tokens())) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens()), expected)


def test_rwkv_mlp_by_hand():
    """Channel mixing (arXiv:2305.13048, equations 12-14) on two tokens."""
    model = create(mlp="rwkv")
    mlp = model.blocks[0].mlp
    x = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
    mixed = 0.5 * x[:, 1] + 0.5 * x[:, 0]
    inner = (mixed @ mlp.up.weight.T).relu() ** 2 @ mlp.down.weight.T
    expected = torch.sigmoid(mixed @ mlp.gate.weight.T) * inner
    torch.testing.assert_close(mlp(x)[:, 1], expected)
    torch.testing.assert_close(mlp(x[:, 1:], x[:, 0]), expected[:, None])


def test_building_on_the_meta_device_allocates_nothing():
    with torch.device("meta"):
        model = zoo_of_tests().create_model("sum", 50_000, d_model=32768, n_layers=4)
    real = create(n_layers=4)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in real.named_parameters()}
    assert isinstance(model.head, nn.Linear)
    assert model.head.weight is model.embedding.weight
