"""One level up in a U-Net: enlarge the deep features and put them beside the skipped ones, in one pass.

In:  features_BCHW, skip_BOXY, a 2x2 transposed convolution.   Out: both_BPXY, X = 2H, Y = 2W, P = 2O channels.
Knows nothing of networks.      (B batch, C and O channels, H height, W width in pixels)
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def upsample_beside(upsampler: nn.Module, features_BCHW: torch.Tensor, skip_BOXY: torch.Tensor) -> torch.Tensor:
    """`torch.cat((upsampler(features), skip), dim=1)` for a kernel and stride of 2, channels-last, up to rounding.

    Windows of such a transposed convolution do not overlap, so it is one matrix product whose rows
    are written straight to their places. On a CPU its weights' gradient alone took 6 to 7 % of a
    training step as a convolution, and adding up the strided halves of the concatenation's 4 %.
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
        batch, channels, height, width = features_BCHW.shape
        wide = weight_CO22.shape[1]
        rows_NC = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
        weight_CM = weight_CO22.permute(0, 2, 3, 1).reshape(channels, -1)  # M: the 2x2 window, O channels each
        window_NM = torch.addmm(bias_O.repeat(4), rows_NC, weight_CM)
        both_BXYP = window_NM.new_empty(batch, 2 * height, 2 * width, wide + skip_BOXY.shape[1])
        _view_windows(both_BXYP, wide).copy_(window_NM.view(batch, height, width, 2, 2, wide))
        both_BXYP[..., wide:].copy_(skip_BOXY.permute(0, 2, 3, 1))
        context.save_for_backward(rows_NC, weight_CM)
        context.shape, context.wide = features_BCHW.shape, wide
        return both_BXYP.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_BPXY: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows_NC, weight_CM = context.saved_tensors
        batch, channels, height, width = context.shape
        gradient_BXYP = gradient_BPXY.permute(0, 2, 3, 1).contiguous()
        window_NM = _view_windows(gradient_BXYP, context.wide).reshape(len(rows_NC), -1)
        features_BHWC = (window_NM @ weight_CM.t()).view(batch, height, width, channels)
        weight_C22O = (rows_NC.t() @ window_NM).view(channels, 2, 2, context.wide)
        bias_O = gradient_BXYP[..., : context.wide].sum((0, 1, 2))
        skip_BXYO = gradient_BXYP[..., context.wide :].contiguous()  # what comes next would be slow on strides
        return (
            features_BHWC.permute(0, 3, 1, 2),
            weight_C22O.permute(0, 3, 1, 2),
            bias_O,
            skip_BXYO.permute(0, 3, 1, 2),
        )


def _view_windows(both_BXYP: torch.Tensor, wide: int) -> torch.Tensor:
    """The first `wide` channels as BHW22O: each pixel of the features and the 2x2 window it becomes."""
    batch, height, width, channels = both_BXYP.shape
    windows_BH2W2P = both_BXYP.view(batch, height // 2, 2, width // 2, 2, channels)
    return windows_BH2W2P[..., :wide].permute(0, 1, 3, 2, 4, 5)
