"""The ViT-UNet: a residual 3D CNN encoder, a vision transformer at the bottleneck, a CNN decoder with skip connections.

The same file gives the ablations (CNN only, ViT only) at equal parameter counts: see `NetworkConfig.variant` and
`equal_parameters`. Every layer keeps the channels-last memory layout and runs in bfloat16, which is where today's
CPUs and GPUs are fast; a network takes input of any size (padded inside to a multiple of its strides).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinseg.errors import InputError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkConfig:
    """What a ViT-UNet is built from; stored in the model file.

    Attributes:
        in_channels: input sequences.
        out_channels: classes, the background among them.
        channels: feature channels of each CNN level, from full resolution down.
        strides: down-sampling after each level (one a level); the last one leads to the transformer's tokens.
        embedding: width of the transformer's tokens (of the bottleneck's channels in the CNN-only variant).
        depth: transformer layers (residual blocks in the CNN-only variant).
        heads: attention heads.
        variant: "hybrid", "cnn" (convolutions at the bottleneck too) or "vit" (no CNN encoder, no skips).
        deep_supervision: give coarse predictions of the two levels below full resolution in training.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...] = (16, 32, 64, 96)
    strides: tuple[Triple, ...] = ((2, 2, 2),) * 4
    embedding: int = 192
    depth: int = 4
    heads: int = 6
    variant: str = "hybrid"
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        if self.variant not in ("hybrid", "cnn", "vit"):
            raise ValueError(f"network variant {self.variant!r} is unknown: use hybrid, cnn or vit")
        if len(self.channels) != len(self.strides):
            raise ValueError(f"{len(self.channels)} channel counts need as many strides, not {len(self.strides)}")
        if self.embedding % (2 * self.heads):
            raise ValueError(f"embedding {self.embedding} does not divide by {self.heads} heads into pairs of features")

    @property
    def total_stride(self) -> Triple:
        """Down-sampling from the input to the tokens, per axis; inputs are padded to a multiple of it."""
        x, y, z = (prod(stride[axis] for stride in self.strides) for axis in range(3))
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": "vit-unet", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """From what `to_dict` gave (lists for tuples are taken, as JSON gives them)."""
        fields = {key: value for key, value in values.items() if key != "kind"}
        fields["channels"] = tuple(fields["channels"])
        fields["strides"] = tuple(tuple(stride) for stride in fields["strides"])
        return cls(**fields)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"channels": (8, 16, 32, 48), "embedding": 96, "depth": 2, "heads": 4},
    "small": {"channels": (16, 32, 64, 96), "embedding": 192, "depth": 4, "heads": 6},
    "base": {"channels": (32, 64, 128, 256), "embedding": 512, "depth": 8, "heads": 8, "deep_supervision": True},
}


def preset(name: str, in_channels: int, out_channels: int, strides: tuple[Triple, ...]) -> NetworkConfig:
    """The configuration of a preset: `small` trains on two cores, `base` wants a GPU, `tiny` is to try things out.

    Raises InputError for any other, and for as many strides as it has no levels.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    if len(strides) != (levels := len(PRESETS[name]["channels"])):
        raise InputError(f"preset {name} has {levels} levels, but the task names {len(strides)} strides; name {levels}")
    return NetworkConfig(in_channels=in_channels, out_channels=out_channels, strides=strides, **PRESETS[name])


class InstanceNorm(nn.Module):
    """Instance normalisation with a scale and a shift for each channel (Ulyanov et al. 2016).

    One sample at a time, as a batch normalisation of a batch of one: the same numbers as `nn.InstanceNorm3d`, but the
    memory stays channels-last, which on a CPU makes it several times faster, the backward pass most of all.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0].numel() == 1:  # one voxel is its own mean, which torch refuses to take
            return (x - x) * self.weight.reshape(-1, 1, 1, 1) + self.bias.reshape(-1, 1, 1, 1)
        if len(x) > 1:
            return torch.cat([self(one) for one in torch.split(x, 1)])
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


SLOW_UP_TO = 20480
"""Channels · X · Y of a single float32 image up to which torch 2.13 takes its slow convolution on a CPU."""


class SoundConv3d(nn.Conv3d):
    """`nn.Conv3d` without two faults of torch 2.13 on a CPU.

    In bfloat16, where the image has two voxels along its first axis, the gradient of the weights is made of memory that
    nobody has written: there this computes in float32. And in float32 a single small image goes to a convolution that
    is two to eight times slower than the one that a batch of two goes to: there its halves are such a batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                return self._in_float32(x.float())
        if x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            return self._in_float32(x)
        return super().forward(x)

    def _in_float32(self, x: Tensor) -> Tensor:
        if len(x) > 1 or prod(x.shape[1:4]) > SLOW_UP_TO or prod(self.kernel_size) == 1:
            return super().forward(x)
        return self._by_halves(x)

    def _by_halves(self, x: Tensor) -> Tensor:
        """The two halves along X as a batch; of an odd number of slices they share the one in the middle."""
        (kernel, *_), (stride, *_) = self.kernel_size, self.stride
        padding, *others = (int(size) for size in self.padding)
        slices = (x.shape[2] + 2 * padding - kernel) // stride + 1
        half = (slices + 1) // 2
        length, second = (half - 1) * stride + kernel, (slices - half) * stride
        x = functional.pad(x, (0, 0, 0, 0, padding, padding))
        batch = torch.cat([x[:, :, :length], x[:, :, second : second + length]])
        made = functional.conv3d(batch, self.weight, self.bias, self.stride, (0, *others))
        return torch.cat([made[:1], made[1:, :, 2 * half - slices :]], dim=2)


class Convolution(nn.Module):
    """A convolution with its normalisation and activation; with a stride it down-samples."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.convolution = SoundConv3d(in_channels, out_channels, kernel, stride, _half(kernel), bias=False)
        self.norm = InstanceNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _activate(self.norm(self.convolution(x)))


class ResidualBlock(nn.Module):
    """Two convolutions around a skip (He et al. 2016); (N, channels, X, Y, Z) to the same size."""

    def __init__(self, channels: int, kernel: Triple) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, kernel)
        self.second = SoundConv3d(channels, channels, kernel, padding=_half(kernel), bias=False)
        self.norm = InstanceNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return _activate(self.norm(self.second(self.first(x))) + x)


class Up(nn.Module):
    """Fewer channels first, then trilinear up-sampling: eight times less work than the other way round."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(in_channels, out_channels, 1)
        self.stride = tuple(float(factor) for factor in stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.reduce(x), scale_factor=self.stride, mode="trilinear")


def rotary_angles(grid: Triple, head_width: int, device: torch.device) -> Tensor:
    """Angles of the rotary position embedding over a 3D grid, (tokens, head_width // 2) in radians.

    Each axis turns a third of the feature pairs (Su et al. 2021, RoFormer, eq. 34, one axis after the other, with
    base 100 as token grids are short); what remains is not turned. Being relative and without parameters, it serves any
    input size.
    """
    pairs = head_width // 6
    frequencies = 100.0 ** (-torch.arange(pairs, device=device) / pairs)
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    turned = torch.cat([axis.reshape(-1, 1) * frequencies for axis in axes], dim=1)
    return functional.pad(turned, (0, head_width // 2 - 3 * pairs))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the feature pairs of queries or keys, (N, heads, tokens, head_width), by `rotary_angles`."""
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer (Dosovitskiy et al. 2021): self-attention, then a perceptron, each with a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, angles: Tensor) -> Tensor:
        count, length, width = tokens.shape
        mixed = self.query_key_value(self.norm1(tokens)).reshape(count, length, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(rotate(query, angles), rotate(key, angles), value)
        tokens = tokens + self.projection(attended.transpose(1, 2).reshape(count, length, width))
        return tokens + self.perceptron(self.norm2(tokens))


class Transformer(nn.Module):
    """Self-attention over all places of a feature map: (N, width, X, Y, Z) to the same shape."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head_width = width // heads

    def forward(self, x: Tensor) -> Tensor:
        count, width, *size = x.shape
        grid = (size[0], size[1], size[2])
        angles = rotary_angles(grid, self.head_width, x.device)
        tokens = x.permute(0, 2, 3, 4, 1).reshape(count, -1, width)
        for layer in self.layers:
            tokens = layer(tokens, angles)
        return self.norm(tokens).to(x.dtype).reshape(count, *grid, width).permute(0, 4, 1, 2, 3)


class ViTUNet(nn.Module):
    """The network. Input (N, in_channels, X, Y, Z) of any size, output logits (N, out_channels, X, Y, Z).

    In training with deep supervision a list: full resolution first, then a half and a quarter.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels, strides = config.channels, config.strides
        kernels = [kernel_size(stride) for stride in strides]
        levels = range(len(channels))
        if config.variant == "vit":
            self.patches = nn.Conv3d(config.in_channels, config.embedding, config.total_stride, config.total_stride)
        else:
            self.stem = Convolution(config.in_channels, channels[0], kernels[0])
            self.down = nn.ModuleList(
                nn.Sequential(
                    Convolution(channels[level - 1], channels[level], kernels[level - 1], strides[level - 1]),
                    ResidualBlock(channels[level], kernels[level]),
                )
                for level in levels[1:]
            )
            self.patches = nn.Conv3d(channels[-1], config.embedding, strides[-1], strides[-1])
        if config.variant == "cnn":
            blocks = (ResidualBlock(config.embedding, kernels[-1]) for _ in range(config.depth))
            self.bottleneck: nn.Module = nn.Sequential(*blocks)
        else:
            self.bottleneck = Transformer(config.embedding, config.depth, config.heads)
        below = (*channels[1:], config.embedding)
        self.up = nn.ModuleList(Up(below[level], channels[level], strides[level]) for level in levels)
        self.merge = nn.ModuleList(
            ResidualBlock(channels[level], kernels[level])
            if level
            else Convolution(channels[0], channels[0], kernels[0])
            for level in levels
        )
        supervised = min(3, len(channels)) if config.deep_supervision else 1
        self.heads = nn.ModuleList(nn.Conv3d(channels[level], config.out_channels, 1) for level in range(supervised))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        size = image.shape[2:]
        kind = image.device.type
        lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if lowered else image.dtype
        x = image.to(dtype, memory_format=torch.channels_last_3d)  # before the padding, which then moves half as much
        x = pad_to_multiple(x, self.config.total_stride)
        skips: list[Tensor] = []
        if self.config.variant != "vit":
            x = self.stem(x)
            skips.append(x)
            for stage in self.down:
                x = stage(x)
                skips.append(x)
        x = self.bottleneck(self.patches(x))
        predictions: list[Tensor] = []
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if skips:
                x += skips.pop()
            x = self.merge[level](x)
            if level < len(self.heads) and (self.training or level == 0):
                predictions.insert(0, self.heads[level](x))
        predictions[0] = predictions[0][:, :, : size[0], : size[1], : size[2]]
        return predictions if self.training and self.config.deep_supervision else predictions[0]


def kernel_size(stride: Triple) -> Triple:
    """Convolution kernel of a level that is left by `stride`: none along an axis whose slices are still too thick to be
    down-sampled (the rule of nnU-Net, Isensee et al. 2021)."""
    x, y, z = (3 if factor > 1 else 1 for factor in stride)
    return x, y, z


def build_network(config: NetworkConfig) -> ViTUNet:
    """The network of a configuration, with fresh weights."""
    return ViTUNet(config)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def equal_parameters(config: NetworkConfig, variant: str) -> NetworkConfig:
    """The ablation `variant` whose width gives it as many parameters as `config` has, as nearly as widths allow."""
    with torch.device("meta"):
        wanted = count_parameters(ViTUNet(config))
        candidates = [
            replace(config, variant=variant, embedding=width)
            for width in range(config.heads * 4, 1200, config.heads * 2)
        ]
        return min(candidates, key=lambda candidate: abs(count_parameters(ViTUNet(candidate)) - wanted))


def _half(kernel: Triple) -> Triple:
    x, y, z = (size // 2 for size in kernel)
    return x, y, z


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.01, inplace=True)


def pad_to_multiple(image: Tensor, multiple: Triple) -> Tensor:
    """(N, C, X, Y, Z) with zeros at the end of each axis that is no multiple."""
    missing = [-size % factor for size, factor in zip(image.shape[2:], multiple, strict=True)]
    if not any(missing):
        return image
    return functional.pad(image, (0, missing[2], 0, missing[1], 0, missing[0]))
