"""What DeepSpeed's CUDA kernels for quantization do, on a processor: symmetric int8 with a scale for each group of numbers.

The grouping is DeepSpeed's own, and so is all that happens to the numbers afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero import partition_parameters
from torch import Tensor


class _Kernels:
    Symmetric = 0

    @staticmethod
    def quantize(numbers: Tensor, groups: int, bits: int, kind: int) -> tuple[Tensor, Tensor]:
        assert (numbers.dtype, bits) == (torch.half, 8), "what the kernel takes"
        parts = numbers.float().view(groups, -1)
        scales = parts.abs().amax(1).clamp(min=1e-8) / 127
        return torch.round(parts / scales[:, None]).to(torch.int8).view(numbers.shape), scales

    @staticmethod
    def dequantize(numbers: Tensor, scales: Tensor, groups: int, bits: int, kind: int) -> Tensor:
        return (numbers.reshape(groups, -1).float() * scales[:, None]).half().view(numbers.shape)


class CpuQuantizer(partition_parameters.CUDAQuantizer):
    """Takes its place, see `install`."""

    def __init__(self) -> None:
        self.quantizer_cuda_module: Any = _Kernels


def install() -> None:
    """In this process DeepSpeed quantizes without a GPU."""
    partition_parameters.CUDAQuantizer = CpuQuantizer
