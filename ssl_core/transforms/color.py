"""Color operations on whole batches, with a separate amount for each image.

The operations equal torchvision's on float images. They work in place on (m, 3, H, W) in [0, 1], with factors
(m, 1, 1, 1). A factor of 1 changes nothing in brightness, contrast and saturation, and 0 nothing in the hue.
"""

import torch
from torch import Tensor
from torch.nn import functional


def luma(images: Tensor) -> Tensor:
    """Return the ITU-R 601-2 luma, (n, 1, H, W), with torchvision's coefficients."""
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply every channel by the factor, and clamp."""
    return images.mul_(factor).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference from the image's mean luma by the factor, and clamp."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference from each pixel's luma by the factor, and clamp."""
    own = luma(images)
    return images.mul_(factor).add_(own.mul_(1 - factor)).clamp_(0, 1)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` turns, at constant value and chroma.

    The hue, in sixths of a turn, is copysign(1 + (green + blue - red - min) / chroma, green - blue), in [-3, 3], which
    is HSV's definition without its branches. A channel is below the value by chroma * clamp(d - 1, 0, 1), with d the
    distance around the circle from the hue to the channel's hue (red 0, green 2, blue -2).
    """
    red, green, blue = images.unbind(1)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    chroma = value - low
    angle = torch.add(green, blue).sub_(red).sub_(low)
    # A gray pixel has chroma 0, and 0 / tiny is 0: it stays gray for any hue.
    angle.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(1).copysign_(green - blue)
    angle.add_(factor.view(-1, 1, 1), alpha=6)
    angle.sub_(angle.div(6).round_(), alpha=6)
    centers = torch.tensor([0.0, 2.0, -2.0]).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    # |hue - center| is at most 5, so d = 3 - ||hue - center| - 3|; this is -clamp(d - 1, 0, 1).
    short = torch.sub(angle.unsqueeze(1), centers).abs_().sub_(3).abs_().sub_(2).clamp_(-1, 0)
    return torch.addcmul(value.unsqueeze(1), chroma.unsqueeze(1), short, out=images)


def grayscale(images: Tensor, factor: Tensor) -> Tensor:
    """Set all channels of each pixel to its luma; the factor is not used."""
    return images.copy_(luma(images).expand_as(images))


# The first four in the order of StrongParameters.factors.
OPERATIONS = (brightness, contrast, saturation, hue, grayscale)
_NONE_DUE = len(OPERATIONS)


def color(views: Tensor, jitter: Tensor, order: Tensor, factors: Tensor, gray: Tensor) -> Tensor:
    """Apply color jitter, then grayscale.

    Before each of the five stages the batch is sorted by its next operation, so that each operation works in place on a
    slice: one copy per stage, instead of a gather and a scatter for every operation.

    Args:
        views: (n, 3, H, W) float32 in [0, 1], any device; overwritten.
        jitter, order, factors, gray: as in `views.StrongParameters`, on the CPU.

    Returns:
        (n, 3, H, W), a new tensor.
    """
    jittered = torch.where(jitter.unsqueeze(1), order, _NONE_DUE)
    grayed = torch.where(gray, OPERATIONS.index(grayscale), _NONE_DUE)
    due = torch.cat([jittered, grayed.unsqueeze(1)], dim=1).t()
    images = torch.arange(len(views)).expand(1, -1)
    orders = torch.cat([images, due.argsort(dim=1, stable=True), images])
    # Position of each image in the order before, from which it is copied. The last copy restores the given order.
    sources = orders.argsort(dim=1)[:-1].gather(1, orders[1:])
    stages, padded = orders[1:-1], functional.pad(factors, (0, 2))
    # The lengths are on the host, so these two are the only transfers.
    lengths = [torch.bincount(stage, minlength=_NONE_DUE + 1).tolist() for stage in due]
    amounts = padded[stages, due.gather(1, stages)].to(views.device, non_blocking=True)
    spare = torch.empty_like(views)
    *gathers, restore = sources.to(views.device, non_blocking=True)
    for gather, amount, length in zip(gathers, amounts, lengths, strict=True):
        # Two buffers take turns, since fresh memory for every stage costs the CPU more than the copy itself.
        views, spare = torch.index_select(views, 0, gather, out=spare), views
        parts = zip(OPERATIONS, views.split(length), amount.view(-1, 1, 1, 1).split(length), strict=False)
        for operation, part, factor in parts:
            if len(part):
                operation(part, factor)
    return torch.index_select(views, 0, restore, out=spare)
