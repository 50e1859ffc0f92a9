"""Linear layers on a CPU, in which no row depends on its neighbours: it gives the same bits alone and beside others.

What a request gets must not depend on who else is there, and sampling turns the last bit into another token.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils import mkldnn

__all__ = ["Int8Linear", "OneDnnLinear", "is_int8_available"]

# Without VNNI products of 8-bit numbers are summed in pairs in 16 bits, which two full ones overflow.
_LEVELS = 127 if torch.cpu._is_vnni_supported() else 63
_WEIGHT_LEVELS = 127


def is_int8_available() -> bool:
    """Whether this build of PyTorch has the kernels, as those for x86 have."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class OneDnnLinear(nn.Module):
    """A linear layer by oneDNN, which reads the weights three times as fast as PyTorch's own where there are few rows.

    It sums a single row in another order than several, and several always in the same one: so a single row comes twice.
    """

    def __init__(self, source: nn.Linear) -> None:
        """Take the weights of `source`, and its dtype."""
        super().__init__()
        self.layer = mkldnn.MkldnnLinear(source, source.weight.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if rows.shape[:-1].numel() > 1:
            multiplied: Tensor = self.layer(rows)
            return multiplied
        twice: Tensor = self.layer(rows.expand(2, *rows.shape).contiguous())
        return twice[0]


class Int8Linear(nn.Module):
    """A linear layer without bias: 8-bit weights with a scale for each output, 8-bit inputs with one for each row.

    PyTorch's dynamic quantisation takes one scale for a whole batch. Here every row is divided by its largest value;
    sums are of whole numbers, and exact in any order.
    """

    def __init__(self, source: nn.Linear, levels: int = _LEVELS) -> None:
        """Take the weights of `source` [O, I]; inputs get `levels` steps on either side of zero."""
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self._step, self._zero = 1.0 / levels, levels + 1
        weight = source.weight.detach().float()
        scale = weight.abs().amax(dim=1) / _WEIGHT_LEVELS
        scale[scale == 0] = 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a successor in another package, which this one does not need
            zero = torch.zeros(self.out_features, dtype=torch.long)
            quantised = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def forward(self, rows: Tensor) -> Tensor:
        """[..., I] float32 to [..., O]."""
        largest = rows.abs().amax(-1, keepdim=True)
        # Of a row of zeros 0 / 0 becomes some 8-bit number, which the 0 afterwards takes back.
        product: Tensor = self._multiply(rows / largest, self._step, self._zero, self._packed)
        return product.mul_(largest)
