"""How much of what its chip could do a run does: model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, B).

    MFU = tokens/s * 3 * FLOPs a token of a forward pass / the chip's peak in the precision of the matrix products

The backward pass makes two products for each of the forward pass, so an update is three of that. A forward pass is
counted operation by operation (`weights.flops_per_token`): matrix products, convolutions and Fourier transforms, all
l x l scores of attention among them. Element-wise work is not, so that a scan outside matrix products counts for
nothing. Tokens are those that are read, without padding.
"""

from __future__ import annotations

import torch
from torch import nn

from icll_zoo.weights import flops_per_token

PASSES = 3
"""Forward passes that an update costs."""

# Dense peaks in FLOP/s by a part of the device's name, of NVIDIA's data sheets: bf16 and TF32 on tensor cores, float32
# and float64 without. The more special name stands before the one that it contains.
PEAKS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12, "fp64": 33.5e12},
    "H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "fp32": 51.2e12, "fp64": 25.6e12},
    "H100": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12, "fp64": 33.5e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12, "fp64": 9.7e12},
    "L40S": {"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12, "fp64": 1.4e12},
    "L4": {"bf16": 121e12, "tf32": 60e12, "fp32": 30.3e12, "fp64": 0.5e12},
    "A10": {"bf16": 125e12, "tf32": 62.5e12, "fp32": 31.2e12, "fp64": 1e12},
}


def peak(device: torch.device, precision: str) -> float | None:
    """The FLOP/s that a device is said to reach at most; None for one whose peak nobody has written down here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)


def share_of_peak(
    model: nn.Module, length: int, device: torch.device, precision: str, devices: int = 1
) -> float | None:
    """What training at one token a second would use of the peak of some devices; times tokens/s it is the MFU.

    length: of the sequences, as attention's products grow with it. None where the peak or the FLOPs are not known.
    """
    most = peak(device, precision)
    forward = flops_per_token(model, length) if most is not None else None
    return None if most is None or forward is None else PASSES * forward / (devices * most)
