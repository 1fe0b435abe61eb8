"""Networks of others, written anew from their parameters' names, and what is needed to compare ours with them."""

import torch
from torch import nn

from astra_gym.ssl_core.models.target_network import IMAGENET_MEAN, IMAGENET_STD, build_network
from tests.helpers.draws import generator


def randomize(model, seed=0):
    """Random weights of a sensible scale, and batch-norm statistics that are far from 0 and 1."""
    draws = generator(seed)
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            scale = (2 / part.weight[0].numel()) ** 0.5
            part.weight.data.normal_(0, scale, generator=draws)
            if part.bias is not None:
                part.bias.data.normal_(generator=draws)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.uniform_(0.5, 1.5, generator=draws)
            for values in (part.bias.data, part.running_mean):
                values.normal_(0, 0.3, generator=draws)
            part.num_batches_tracked.fill_(7)
    return model.eval()


def images(side=32):
    return torch.rand(2, 3, side, side, generator=generator(5), dtype=torch.float64)


def normalized(x, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    # our network keeps both as float32
    return (x - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(std).double().view(1, 3, 1, 1)


def agree(ours, theirs):
    return bool((ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()) and theirs.std() > 1e-3


# The ACL family's networks, written from their parameters' names.


class Norms(nn.Module):
    def __init__(self, channels, places, kind=nn.BatchNorm2d):
        super().__init__()
        self.bn_list = nn.ModuleList([kind(channels) for _ in range(places)])

    def forward(self, x, place):
        return self.bn_list[place](x)


class Downsample(nn.Module):
    def __init__(self, inputs, outputs, stride, places):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = Norms(outputs, places)


class Residual(nn.Module):
    def __init__(self, inputs, channels, outputs, stride, places):
        super().__init__()
        self.deep = outputs != channels
        if self.deep:
            self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
            self.bn3 = Norms(outputs, places)
        else:
            self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = Norms(channels, places), Norms(channels, places)
        if stride != 1 or inputs != outputs:
            self.downsample = Downsample(inputs, outputs, stride, places)

    def forward(self, x, place):
        around = x
        if hasattr(self, "downsample"):
            around = self.downsample.bn(self.downsample.conv(x), place)
        x = self.bn2(self.conv2(self.bn1(self.conv1(x), place).relu()), place)
        if self.deep:
            x = self.bn3(self.conv3(x.relu()), place)
        return (x + around).relu()


class Head(nn.Module):
    def __init__(self, features, hidden, out, places):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(features, hidden), Norms(hidden, places, nn.BatchNorm1d)
        self.fc2, self.bn2 = nn.Linear(hidden, out, bias=False), Norms(out, places, nn.BatchNorm1d)
        self.fc3, self.bn3 = nn.Linear(out, out, bias=False), Norms(out, places, nn.BatchNorm1d)

    def forward(self, x, place):
        x = self.bn2(self.fc2(self.bn1(self.fc1(x), place).relu()), place)
        return self.bn3(self.fc3(x.relu()), place)


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))


class Family(nn.Module):
    def __init__(self, counts=(2, 2, 2, 2), width=8, hidden=64, out=64, places=2, large=False, deep=False):
        super().__init__()
        self.normalize = Normalize()
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
        self.bn1 = Norms(width, places)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        inputs = width
        for stage, count in enumerate(counts):
            channels, outputs = width * 2**stage, width * 2**stage * (4 if deep else 1)
            blocks = [
                Residual(outputs if i else inputs, channels, outputs, 1 if i or not stage else 2, places)
                for i in range(count)
            ]
            setattr(self, f"layer{stage + 1}", nn.ModuleList(blocks))
            inputs = outputs
        self.fc = Head(inputs, hidden, out, places)

    def forward(self, x, place):
        x = (x - self.normalize.mean.view(1, 3, 1, 1)) / self.normalize.std.view(1, 3, 1, 1)
        x = self.maxpool(self.bn1(self.conv1(x), place).relu())
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, place)
        features = x.mean(dim=(2, 3))
        return features, self.fc(features, place)


class Momentum(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.encoder_q, self.encoder_k = Family(**arguments), Family(**arguments)


def ordinary(width=8, stem="cifar", seed=0):
    network = build_network(generator(seed), arch="resnet10", width=width, stem=stem, routes=("normal",))
    return randomize(network, seed)
