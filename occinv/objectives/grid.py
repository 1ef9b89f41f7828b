"""The free grid: T1, T2, target and M of Eq. (1), each chosen by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from occinv.data.crop import Crop
from occinv.losses.chunked import agreement_by_chance, chunked_info_nce
from occinv.losses.classification import cross_entropy
from occinv.losses.contrastive import byol, cosine
from occinv.losses.distillation import smooth_l1
from occinv.losses.reconstruction import mean_over, normalize_patches, patch_distance
from occinv.models.decoder import Decoder, decoder_of, restore
from occinv.models.heads import MlpHead, PrototypeHead
from occinv.models.patches import patchify
from occinv.models.tokenizers.base import Tokenizer, make_tokenizer
from occinv.models.vit import TOKEN_INIT
from occinv.objectives.base import FROZEN, Axes, Context, Networks, Objective, ParamGroup, Terms
from occinv.objectives.data2vec import Data2Vec
from occinv.objectives.dino import DINO, update_center
from occinv.objectives.ema import EMA
from occinv.objectives.grid_axes import (
    OCCLUSIONS,
    Combination,
    Similarity,
    Targets,
    Transformation,
)
from occinv.rng import fold, split
from occinv.schema import Area, Count, Depth, Probability, Rate, Temperature, UserError, Width
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, random_visible, rectangles_visible
from occinv.transforms.view import View, normalize, whole


class Decoded(NamedTuple):
    """Decoded patches [B, N, P] of T2(x), for Eq. (8).

    Attributes:
      compared: Compared with z1: d(f(T2 x)), or that of the EMA networks.
      online: d(f(T2 x)), which the constraint compares with the pixels.
    """

    compared: jax.Array
    online: jax.Array


class GridNetworks(Networks):
    """f and the networks of M, as far as M has any.

    Attributes:
      pools: Whether M compares the mean patch token instead of each.
    """

    decoder: Decoder | None = None
    projector: MlpHead | None = None
    predictor: nn.Module | None = None
    head: nn.Module | None = None
    pools: bool = False

    def project(self, view: View, rng: jax.Array | None = None) -> jax.Array:
        """Return the output of all but the predictor for f(view): float32 [B, T, …]."""
        tokens = self.encode(view, rng).tokens
        if self.decoder is not None:
            return self.decoder(tokens, view.visible)
        tokens = tokens[:, 1:]
        if self.pools:
            tokens = tokens.mean(1, keepdims=True)
        elif tokens.shape[1] < view.visible.shape[1]:
            tokens = restore(tokens, view.visible, jnp.float32(0))
        network = self.projector or self.head
        return tokens if network is None else network(tokens).astype(jnp.float32)

    def predict(self, view: View, rng: jax.Array | None = None) -> jax.Array:
        """Return `project`, through the predictor if M has one."""
        z = self.project(view, rng)
        return z if self.predictor is None else self.predictor(z).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Objective):
    """M(f(T1 x), target(T2 x)), of any axes that work together (see `Combination.refusal`).

    Two maskings of one kind are complementary, Eq. (6); otherwise T2 removes its own patches.
    Tokens are compared patch by patch: by InfoNCE and BYOL all of them, as in C-MAE; otherwise
    those that T1 removes and T2 shows, or all that T2 shows where T1 removes none. Views of two
    crops share no patch, so their mean patch tokens are compared.

    Removed patches are dropped where M decodes, and where only T2 removes any, since no gradient
    would train a token in their place; otherwise a learned token replaces them.

    Attributes:
      t1: T1: `identity`, color `jitter`, another random `crop`, `masking` of single patches, or of
        `rectangles`.
      t2: T2, named as in `t1`. If both mask alike, T2 keeps the patches that T1 removes.
      targets: `pixels`, `ids` of a tokenizer, or features of the same `encoder` or its `ema`.
      similarity: `pixel_l2` is MAE's; `decoder_distance` is Eq. (8) with its constraint, R-MAE's;
        `infonce` and `byol` are C-MAE's, with projector and predictor; `cross_entropy` is BEiT's
        for ids and DINO's, centered, for features; `smoothed_l1` to standardized features is
        data2vec's. With the same encoder as target, gradients flow through both sides for the
        decoder's distance and InfoNCE; otherwise z2 has no gradient (SimSiam).
      mask_ratio: The share of patches that T1 removes.
      t2_mask_ratio: The share that T2 removes where it is not the complement.
      min_rectangle: The smallest area that a rectangle is drawn with, in patches.
      crop_scale: The area of a crop; None: `data.crop_scale`.
      color: The jitter.
      tokenizer: The tokenizer of ids, as in BEiT.
      temperature: The temperature of InfoNCE.
      momentum: The momentum of the EMA, which moves before the forward pass.
      head_hidden: The width of the hidden layers of projector, predictor and the prototypes' head.
      head_out: The width of the output of projector and predictor, and of the prototypes' input.
      num_prototypes: The number of prototypes of the centered cross-entropy.
      decoder_width: The width of the tokens in the decoder d.
      decoder_depth: The number of transformer blocks of d.
      decoder_heads: The number of attention heads of d.
    """

    t1: Transformation = "masking"
    t2: Transformation = "masking"
    targets: Targets = "ema"
    similarity: Similarity = "infonce"
    mask_ratio: Rate = 0.75
    t2_mask_ratio: Rate = 0.25
    min_rectangle: Count = 16
    crop_scale: tuple[Area, Area] | None = None
    color: ColorJitter = ColorJitter()
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "kmeans"})
    temperature: Temperature = 0.2
    momentum: Probability = 0.996
    head_hidden: Width = 2048
    head_out: Width = 256
    num_prototypes: Count = 4096
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Width = 16

    def __post_init__(self) -> None:
        if refusal := Combination(self.t1, self.t2, self.targets, self.similarity).refusal:
            raise UserError(refusal)
        kept, kept_by_t2 = self.kept
        if self.t1 in OCCLUSIONS and kept_by_t2 <= kept and self.t1 != self.t2:
            raise UserError(
                f"objective.t2_mask_ratio={self.t2_mask_ratio}, expected less than "
                f"objective.mask_ratio={self.mask_ratio}: T2 must show patches that T1 removes"
            )
        if self.targets == "ids":
            self.codebook  # noqa: B018 (raises for an impossible tokenizer)
        if self.similarity == "infonce" and 1 == self.setting.batch_size < self.setting.num_images:
            raise UserError(
                "train.batch_size=1 with objective.similarity='infonce': the negatives are the "
                "other images of a batch; use 2 or more, or objective.similarity='byol'"
            )

    @property
    def is_complement(self) -> bool:
        """Whether T2 keeps exactly the patches that T1 removes."""
        return self.t1 == self.t2 and self.t1 in OCCLUSIONS

    @property
    def decodes(self) -> bool:
        """Whether M compares decoded patches."""
        return self.similarity in ("pixel_l2", "decoder_distance")

    @property
    def has_prototypes(self) -> bool:
        """Whether M compares probabilities of prototypes."""
        return self.similarity == "cross_entropy" and self.targets != "ids"

    @property
    def kept(self) -> tuple[int, int]:
        """The numbers of patches that T1 and T2 keep."""
        count = self.setting.encoder.num_patches
        kept = kept_patches(count, self.mask_ratio) if self.t1 in OCCLUSIONS else count
        if self.t2 not in OCCLUSIONS:
            return kept, count
        return kept, count - kept if self.is_complement else kept_patches(count, self.t2_mask_ratio)

    @property
    def axes(self) -> Axes:
        words = {
            "jitter": "color",
            "masking": "{:.0%} removed",
            "rectangles": "{:.0%} removed in rectangles",
        }
        t1 = words.get(self.t1, self.t1).format(self.mask_ratio)
        t2 = words.get(self.t2, self.t2).format(self.t2_mask_ratio)
        target = {
            "pixels": "pixels",
            "ids": f"{self.tokenizer['name']} ids",
            "encoder": "same encoder",
            "ema": "EMA encoder",
        }[self.targets]
        measure = {
            "pixel_l2": "pixel L2",
            "decoder_distance": "decoder L2",
            "infonce": "InfoNCE",
            "byol": "BYOL",
            "cross_entropy": "centered cross-entropy" if self.has_prototypes else "cross-entropy",
            "smoothed_l1": "smoothed L1",
        }[self.similarity]
        t2 = "the complement" if self.is_complement else t2
        paper = "Kong and Zhang 2023, arXiv:2208.04164"
        token: Any = "class" if self.decodes else "mean"  # without a decoder, M reads patch tokens
        return Axes(t1, t2, target, measure, "siamese", paper, token)

    @property
    def crops(self) -> tuple[Crop, ...]:
        size = self.setting.encoder.image_size
        return tuple(Crop(size, self.crop_scale) for t in (self.t1, self.t2) if t == "crop")

    @property
    def param_groups(self) -> dict[tuple[str, ...], ParamGroup]:
        return {("head", "last", "scale"): FROZEN} if self.has_prototypes else {}

    @property
    def couples(self) -> Literal["nothing", "loss"]:
        return "loss" if self.similarity == "infonce" else "nothing"

    @property
    def codebook(self) -> Tokenizer:
        """The tokenizer of ids."""
        encoder = self.setting.encoder
        sizes = encoder.image_size, encoder.patch_size, encoder.channels
        return make_tokenizer(self.tokenizer, *sizes)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.targets == "ids":
            state["tokenizer"] = self.codebook
        if self.targets == "ema":
            names = ("encoder", "decoder", "projector", "head")
            networks = self.networks
            copied = tuple(name for name in names if getattr(networks, name) is not None)
            state["target"] = EMA(copied, self.momentum)
        if self.has_prototypes:
            state["center"] = jnp.zeros(self.num_prototypes)
        return state

    @property
    def networks(self) -> GridNetworks:
        has_token = self.t1 in OCCLUSIONS and not self.decodes
        encoder = self.setting.encoder.clone(mask_token=has_token)
        dtype = self.setting.dtype
        networks: dict[str, Any] = {}
        if self.decodes:
            sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
            networks["decoder"] = decoder_of(encoder, *sizes, dtype)
        elif self.similarity in ("infonce", "byol"):
            for name in ("projector", "predictor"):
                networks[name] = MlpHead(self.head_hidden, self.head_out, dtype=dtype)
        elif self.similarity == "smoothed_l1":
            predictor = nn.Dense(encoder.width, kernel_init=TOKEN_INIT, dtype=dtype)
            networks["predictor"] = predictor
        elif self.targets == "ids":
            ids = self.codebook.num_ids
            networks["head"] = nn.Dense(ids, kernel_init=TOKEN_INIT, dtype=dtype)
        else:
            sizes = self.head_hidden, self.head_out, self.num_prototypes
            networks["head"] = PrototypeHead(*sizes, unit_prototypes=True, dtype=dtype)
        return GridNetworks(encoder, **networks, pools=bool(self.crops))

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """T1(x) and T2(x)."""
        image, *crops = pixels if self.crops else (pixels,)
        first_rng, second_rng = split(rng, 2)
        kept, kept_by_t2 = self.kept
        first = self.view(self.t1, crops[0] if self.t1 == "crop" else image, first_rng, kept)
        image = crops[-1] if self.t2 == "crop" else image
        second = self.view(self.t2, image, second_rng, kept_by_t2)
        if self.is_complement:
            second = dataclasses.replace(second, visible=~first.visible)
        return first, second

    def view(self, name: Transformation, pixels: jax.Array, rng: jax.Array, kept: int) -> View:
        """Apply the transformation of that name, which keeps `kept` patches."""
        count, grid = self.setting.encoder.num_patches, self.setting.encoder.grid
        if name == "masking":
            return View(pixels, random_visible(rng, count, kept), kept)
        if name == "rectangles":
            return View(pixels, rectangles_visible(rng, grid, kept, self.min_rectangle), kept)
        return whole(self.color(rng, pixels) if name == "jitter" else pixels, count)

    def features(self, net: GridNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1, and z2 if an encoder makes it: float32 [B, T, …] or Decoded."""
        first, second = views
        z1 = net.predict(first, fold(ctx.rng, 0))
        if self.targets in ("pixels", "ids"):
            return z1, None
        online = net.project(second, fold(ctx.rng, 1))
        z2 = online if self.targets == "encoder" else ctx.target.project(second)
        if self.similarity == "smoothed_l1":
            z2 = jax.nn.standardize(z2)  # otherwise features would shrink
        trains_target = self.similarity in ("decoder_distance", "infonce")
        if not (self.targets == "encoder" and trains_target):
            z2 = jax.lax.stop_gradient(z2)
        return z1, Decoded(z2, online) if self.similarity == "decoder_distance" else z2

    def region(self, first: View, second: View) -> jax.Array:
        """Return bool [B, T], the tokens that M compares."""
        if self.crops:
            return jnp.ones_like(first.visible[:, :1])
        if self.t1 not in OCCLUSIONS:
            return second.visible
        if self.similarity in ("infonce", "byol"):
            return jnp.ones_like(second.visible)
        return ~first.visible & second.visible

    def patches(self, view: View) -> jax.Array:
        """Return the patches of a view's image, each normalized: [B, N, P]."""
        pixels = normalize(view.pixels)
        return normalize_patches(patchify(pixels, self.setting.encoder.patch_size))

    def loss(self, net: GridNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The mean of M over the tokens that are compared, and its metrics."""
        z1, z2 = z
        second, region = views[1], self.region(*views)
        if self.similarity == "pixel_l2":
            return Terms(patch_distance(z1, self.patches(second), region), {})
        if self.similarity == "decoder_distance":
            distance = patch_distance(z1, z2.compared, region)
            constraint = patch_distance(z2.online, self.patches(second), second.visible)
            return Terms(distance + constraint, {"distance": distance, "constraint": constraint})
        loss, metrics, state = self.measure(z1, z2, second, ctx)
        means = {name: mean_over(value, region) for name, value in metrics.items()}
        return Terms(mean_over(loss, region), means, state)

    def measure(self, z1: jax.Array, z2: Any, second: View, ctx: Context) -> Terms:
        """M(z1, z2) of each token: loss and metrics [B, T]."""
        if self.similarity == "infonce":
            loss, agrees = chunked_info_nce(z1, z2, "position", self.temperature)
            by_chance = agreement_by_chance(z1.shape, "position")
            return Terms(loss, {"agreement": agrees, "agreement_by_chance": by_chance})
        if self.similarity == "byol":
            return Terms(byol(z1, z2), {})
        if self.similarity == "smoothed_l1":
            loss = smooth_l1(z1, z2, Data2Vec.beta).mean(-1)
            return Terms(loss, {"similarity": cosine(z1, z2)})
        if self.targets == "ids":
            ids = self.codebook.ids(ctx.state["tokenizer"], second.pixels)
            accuracy = (z1.argmax(-1) == ids).astype(jnp.float32)
            return Terms(cross_entropy(z1, ids, smoothing=0.0), {"accuracy": accuracy})
        center = ctx.state["center"]
        logits = (z2 - center) / DINO.teacher_temperature
        teacher = jax.nn.softmax(logits)
        loss = optax.softmax_cross_entropy(z1 / DINO.student_temperature, teacher)
        center = update_center(center, [z2.mean(1)], ctx.weight, DINO.center_momentum)
        return Terms(
            loss,
            {"teacher_entropy": optax.softmax_cross_entropy(logits, teacher)},
            {"center": center},
        )
