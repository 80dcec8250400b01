"""The tutorial's network, training step and prediction as published, written anew: what ours is measured beside.

In:  photo_B3HW, mask_B1HW, floats 0..1.   Out: probabilities, a loss, a step; masks.
Its faults are kept on purpose: batch norm made anew inside `forward` (never trained, always the
batch's statistics), a sigmoid before the loss, float32, contiguous memory, a loss read after
every step. The one change: batch norm is made on the photo's device, so that it runs on CUDA.
"""

import torch
from torch import nn

WIDTHS = (1, 2, 4, 8, 16)


class TutorialUNet(nn.Module):
    def __init__(self, init_features: int) -> None:
        super().__init__()
        widths = [init_features * factor for factor in WIDTHS]
        self.downs = nn.ModuleList(make_convolutions(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, stride=2) for o in widths[-2::-1])
        self.merges = nn.ModuleList(make_convolutions(2 * o, o) for o in widths[-2::-1])
        self.head = nn.Conv2d(init_features, 1, 1)

    def forward(self, photo_B3HW: torch.Tensor) -> torch.Tensor:
        x, skips = photo_B3HW, []
        for down in self.downs:
            if skips:
                x = nn.functional.max_pool2d(x, 2)
            x = run_block(down, x)
            skips.append(x)
        for up, merge, skip in zip(self.ups, self.merges, skips[-2::-1], strict=True):
            x = run_block(merge, torch.cat((up(x), skip), dim=1))
        return torch.sigmoid(self.head(x))


def make_convolutions(num_in: int, num_out: int) -> nn.ModuleList:
    return nn.ModuleList(
        (nn.Conv2d(num_in, num_out, 3, padding=1, bias=False), nn.Conv2d(num_out, num_out, 3, padding=1, bias=False))
    )


def run_block(convolutions: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for convolution in convolutions:
        x = convolution(x)
        x = nn.BatchNorm2d(x.shape[1]).to(x.device)(x)
        x = nn.functional.relu(x)
    return x


def compute_dice_loss(probability_B1HW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
    probability, mask = probability_B1HW.reshape(-1), mask_B1HW.reshape(-1)
    return 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)


def train_step_of_the_tutorial(
    model: TutorialUNet, optimizer: torch.optim.Optimizer, photo_B3HW: torch.Tensor, mask_B1HW: torch.Tensor
) -> float:
    optimizer.zero_grad()
    loss = compute_dice_loss(model(photo_B3HW), mask_B1HW)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def predict(model: TutorialUNet, photo_BHW3: torch.Tensor) -> torch.Tensor:
    """uint8 photos -> uint8 masks in RAM; there is no eval mode, for its batch norm has none."""
    photo_B3HW = photo_BHW3.to(next(model.parameters()).device).permute(0, 3, 1, 2).contiguous().float() / 255
    return (model(photo_B3HW) > 0.5).to(torch.uint8).squeeze(1).cpu()
