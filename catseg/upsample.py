"""One level up in a U-Net: enlarge the deep features and put them beside the skipped ones; gradients of our own.

In:  features_BCHW, skip_BOXY, a 2x2 transposed convolution.   Out: both_BPXY, X = 2H, Y = 2W, P = 2O channels.
Knows nothing of networks.      (B batch, C and O channels, H height, W width in pixels)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def upsample_beside(upsampler: nn.Module, features_BCHW: torch.Tensor, skip_BOXY: torch.Tensor) -> torch.Tensor:
    """`torch.cat((upsampler(features), skip), dim=1)` for a kernel and stride of 2, and its gradients up to rounding.

    Windows of such a transposed convolution do not overlap, so its gradients are plain matrix
    products. On a CPU that of its weights alone took 6 to 7 % of a training step as a convolution's,
    and adding up the strided halves of the concatenation's 4 %.
    """
    assert isinstance(upsampler, nn.ConvTranspose2d) and upsampler.kernel_size == upsampler.stride == (2, 2)
    weight_CO22, bias_O = upsampler.weight, upsampler.bias
    assert bias_O is not None
    device, dtype = features_BCHW.device.type, features_BCHW.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    tensors = (features_BCHW, weight_CO22, bias_O, skip_BOXY)
    both_BPXY: torch.Tensor = _UpsampleBeside.apply(  # type: ignore[no-untyped-call]
        *(tensor.to(dtype) for tensor in tensors)
    )
    return both_BPXY


class _UpsampleBeside(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        features_BCHW: torch.Tensor,
        weight_CO22: torch.Tensor,
        bias_O: torch.Tensor,
        skip_BOXY: torch.Tensor,
    ) -> torch.Tensor:
        context.save_for_backward(features_BCHW, weight_CO22)
        return torch.cat((F.conv_transpose2d(features_BCHW, weight_CO22, bias_O, stride=2), skip_BOXY), dim=1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_BPXY: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features_BCHW, weight_CO22 = context.saved_tensors
        batch, channels, height, width = features_BCHW.shape
        wide = weight_CO22.shape[1]
        gradient_BXYP = gradient_BPXY.permute(0, 2, 3, 1)
        enlarged_BXYO, skip_BXYO = gradient_BXYP[..., :wide], gradient_BXYP[..., wide:]
        windows_BH2W2O = enlarged_BXYO.reshape(batch, height, 2, width, 2, wide)
        window_NM = windows_BH2W2O.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4 * wide)  # N: pixels of the features
        rows_NC = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
        weight_CM = weight_CO22.permute(0, 2, 3, 1).reshape(channels, -1)
        return (
            (window_NM @ weight_CM.t()).view(batch, height, width, channels).permute(0, 3, 1, 2),
            (rows_NC.t() @ window_NM).view(channels, 2, 2, wide).permute(0, 3, 1, 2),
            enlarged_BXYO.sum((0, 1, 2)),
            skip_BXYO.contiguous().permute(0, 3, 1, 2),  # what comes next would be slow on strides
        )
