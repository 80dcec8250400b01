"""The optimizer of a network: Adam or AdamW, walking straight through memory.

In:  a network, its gradients.   Out: new weights.
Knows nothing of losses or schedules.

torch's fused step on a CPU copies every parameter, gradient and moment that is not contiguous before and
after it: all of a channels-last network. So the optimizer is given contiguous views of the same
memory, height and width before the input channels.
"""

import torch
from torch import nn, optim

from catseg.settings import TrainConfig

BETAS = (0.9, 0.999)


def make_optimizer(model: nn.Module, config: TrainConfig) -> optim.Optimizer:
    """The optimizer that the settings name. It must be handed the gradients: see `hand_over_gradients`."""
    views = [_view(parameter.detach()) for parameter in model.parameters()]
    if config.optimizer == "adam":
        return optim.Adam(views, config.lr, BETAS, fused=True)
    return optim.AdamW(views, config.lr, BETAS, weight_decay=config.weight_decay, fused=True)


def hand_over_gradients(model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Take the gradients from the network's parameters and give them to the optimizer's views of them."""
    for parameter, view in zip(model.parameters(), list_views(optimizer), strict=True):
        assert parameter.grad is not None
        view.grad, parameter.grad = _view(parameter.grad), None


def list_views(optimizer: optim.Optimizer) -> list[torch.Tensor]:
    """What the optimizer steps, in the order of the network's parameters."""
    return [view for group in optimizer.param_groups for view in group["params"]]


def _view(tensor: torch.Tensor) -> torch.Tensor:
    """OIHW as OHWI: contiguous if the tensor is channels-last."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
