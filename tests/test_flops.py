"""FLOPs a token: what the counter says is what the sizes say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import icll_zoo
from icll_zoo import flops
from icll_zoo.progress import Progress

CPU = torch.device("cpu")


def test_a_transformer_s_share_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    d, layers, vocabulary, length = 32, 3, 20, 96
    model = icll_zoo.create_model("transformer", vocab_size=vocabulary, d_model=d, n_layers=layers).train()
    # Forward: 2 FLOPs a weight of the matrices (12 d^2 a block, the head) and of each of two l x l products a block.
    forward = layers * (24 * d * d + 4 * length * d) + 2 * d * vocabulary
    assert flops.share_of_peak(model, length, CPU, "bf16") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    found = flops.share_of_peak(model, length, torch.device("cuda"), "bf16", devices=2)
    assert found == pytest.approx(3 * forward / (2 * 989.4e12), rel=1e-9)
    assert model.training


def test_a_cpu_has_no_peak_here_and_every_gpu_one_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flops.peak(CPU, "fp32") is None
    assert all(set(peaks) == {"bf16", "tf32", "fp32", "fp64"} for peaks in flops.PEAKS.values())
    names = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-80GB": 312e12}
    for name, expected in {**names, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "Some GPU": None}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert flops.peak(torch.device("cuda"), "bf16") == expected


def test_progress_shows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icll_zoo.progress.time", SimpleNamespace(perf_counter=iter([0.0, *[0.5] * 9]).__next__))
    progress = Progress(1, share=1e-4)
    progress.advance(1000, 0.5)
    assert "2,000 tokens/s, 20.0% of peak" in capsys.readouterr().err
    assert progress.mfu == pytest.approx(0.2)
    assert Progress(1).mfu is None
