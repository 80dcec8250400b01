"""The optimizer of a network: Adam, AdamW or RMSprop, walking straight through memory.

In:  a network, its gradients.   Out: new weights.
Knows nothing of losses or schedules.

torch's fused step on a CPU copies every parameter, gradient and moment that is not contiguous before and
after it: all of a channels-last network. So the optimizer is given contiguous views of the same
memory, height and width before the input channels.
"""

from typing import Any

import torch
from torch import nn, optim

from catseg.settings import TrainConfig

BETAS = (0.9, 0.999)


def make_optimizer(model: nn.Module, config: TrainConfig) -> optim.Optimizer:
    """The optimizer that the settings name. It must be handed the gradients: see `hand_over_gradients`."""
    views = [_view(parameter.detach()) for parameter in model.parameters()]
    if config.optimizer == "adam":
        return optim.Adam(views, config.lr, BETAS, fused=True)
    groups: list[dict[str, Any]] = [{"params": views, "weight_decay": config.weight_decay}]
    if not config.decay_norms:
        groups[0]["params"] = [view for view in views if view.dim() > 1]
        groups.append({"params": [view for view in views if view.dim() == 1], "weight_decay": 0.0})
    if config.optimizer == "rmsprop":  # torch has it not fused
        return optim.RMSprop(groups, config.lr, momentum=config.momentum, foreach=True)
    return optim.AdamW(groups, config.lr, BETAS, fused=True)


def hand_over_gradients(model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Take the gradients from the network's parameters and give them to the optimizer's views of them."""
    parameters = list(model.parameters())
    if len(optimizer.param_groups) > 1:  # as `make_optimizer` parts them
        parameters.sort(key=lambda parameter: parameter.dim() == 1)
    for parameter, view in zip(parameters, list_views(optimizer), strict=True):
        assert parameter.grad is not None
        view.grad, parameter.grad = _view(parameter.grad), None


def list_views(optimizer: optim.Optimizer) -> list[torch.Tensor]:
    """What the optimizer steps, in the order of the network's parameters, those without weight decay last."""
    return [view for group in optimizer.param_groups for view in group["params"]]


def name_averages(config: TrainConfig) -> tuple[str, ...]:
    """What the optimizer keeps of each parameter, in its shape, once it has made a step."""
    if config.optimizer == "rmsprop":
        return ("square_avg", "momentum_buffer") if config.momentum else ("square_avg",)
    return "exp_avg", "exp_avg_sq"


def _view(tensor: torch.Tensor) -> torch.Tensor:
    """OIHW as OHWI: contiguous if the tensor is channels-last."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
