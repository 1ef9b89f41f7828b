"""A plain MAE in PyTorch, with which the train step of occinv is compared.

`Mae.load` copies occinv's parameters, so that the benchmark can check that both losses are equal.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, n, D] to [B, n, D]."""
        batch, count, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, count, 3, self.heads, -1)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Tower(nn.Module):
    """Transformer blocks and a last layer norm."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, n, D] to [B, n, D]."""
        return self.norm(self.blocks(x))


class Mae(nn.Module):
    """An encoder of visible patches, a decoder, and the mean squared error of masked patches."""

    def __init__(self, patch: int, count: int, encoder: tuple[int, ...], decoder: tuple[int, ...]):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch**2, encoder[0])
        self.encoder, self.decoder = Tower(*encoder), Tower(*decoder)
        self.decoder_embed = nn.Linear(encoder[0], decoder[0])
        self.predict = nn.Linear(decoder[0], 3 * patch**2)
        self.class_token = nn.Parameter(torch.zeros(encoder[0]))
        self.mask_token = nn.Parameter(torch.zeros(decoder[0]))
        self.register_buffer("position", torch.zeros(1 + count, encoder[0]))
        self.register_buffer("decoder_position", torch.zeros(1 + count, decoder[0]))
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, image: torch.Tensor, order: torch.Tensor, kept: int) -> torch.Tensor:
        """Return the loss [] of uint8 [B, H, W, 3]. Patches `order[:, :kept]` are visible."""
        pixels = (image.float() / 255 - self.mean) / self.std
        batch, side, p = len(pixels), pixels.shape[1] // self.patch, self.patch
        patches = (
            pixels.view(batch, side, p, side, p, 3).transpose(2, 3).reshape(batch, -1, 3 * p * p)
        )

        x = self.embed(patches) + self.position[1:]
        seen = order[:, :kept, None]
        x = x.gather(1, seen.expand(-1, -1, x.shape[-1]))
        first = (self.class_token + self.position[0]).expand(batch, 1, -1)
        x = self.decoder_embed(self.encoder(torch.cat([first, x], 1)))

        every = self.mask_token.to(x.dtype).expand(batch, patches.shape[1], -1)
        every = every.scatter(1, seen.expand(-1, -1, x.shape[-1]), x[:, 1:])
        x = self.decoder(torch.cat([x[:, :1], every], 1) + self.decoder_position)
        predicted = self.predict(x[:, 1:])

        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        error = ((predicted - (patches - mean) / (variance + 1e-6) ** 0.5) ** 2).mean(-1)
        return error.gather(1, order[:, kept:]).mean()

    def load(self, params: dict) -> None:
        """Copy the parameters of occinv's MAE, nested dicts of arrays."""
        encoder, decoder = params["encoder"], params["decoder"]
        linear(self.embed, encoder["patch_embed"])
        linear(self.decoder_embed, decoder["embed"])
        linear(self.predict, decoder["predict"])
        copy(self.class_token, encoder["class_token"])
        copy(self.mask_token, decoder["mask_token"])
        copy(self.position, encoder["position"])
        copy(self.decoder_position, decoder["position"])
        for tower, part in ((self.encoder, encoder), (self.decoder, decoder)):
            norm(tower.norm, part["norm"])
            stack = part["blocks"]["scan"]
            for number, block in enumerate(tower.blocks):
                norm(block.norm1, stack["norm1"], number)
                norm(block.norm2, stack["norm2"], number)
                linear(block.qkv, stack["attention"]["qkv"], number)
                linear(block.out, stack["attention"]["out"], number)
                linear(block.up, stack["mlp"]["in"], number)
                linear(block.down, stack["mlp"]["out"], number)


def copy(to: torch.Tensor, array: np.ndarray) -> None:
    """Copy `array` into a tensor of the same shape."""
    with torch.no_grad():
        to.copy_(torch.from_numpy(np.array(array)))


def linear(to: nn.Linear, params: dict, number: int | None = None) -> None:
    """Copy kernel and bias, of transformer block `number` if they are stacked."""
    kernel, bias = (p if number is None else p[number] for p in (params["kernel"], params["bias"]))
    copy(to.weight, np.transpose(kernel))
    copy(to.bias, bias)


def norm(to: nn.LayerNorm, params: dict, number: int | None = None) -> None:
    """Copy scale and bias, of transformer block `number` if they are stacked."""
    copy(to.weight, params["scale"] if number is None else params["scale"][number])
    copy(to.bias, params["bias"] if number is None else params["bias"][number])
