"""The free grid: T1, T2, target and M of Eq. (1), each chosen by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.data.batch import Batch
from occinv.data.crop import Crop
from occinv.losses.chunked import chunked_info_nce
from occinv.losses.losses import (
    byol,
    cosine,
    cross_entropy,
    mean_over,
    normalize_patches,
    patch_distance,
    smooth_l1,
    soft_cross_entropy,
)
from occinv.models.decoder import decoder_of, restore
from occinv.models.heads import MlpHead, PrototypeHead
from occinv.models.patches import patchify
from occinv.models.tokenizers.base import Images, Read, Tokenizer, make_tokenizer
from occinv.models.vit import TOKEN_INIT, ViT
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.objectives.data2vec import Data2Vec
from occinv.objectives.dino import DINO, LAST
from occinv.objectives.ema import moved
from occinv.objectives.grid_axes import (
    OCCLUSIONS,
    Combination,
    Similarity,
    Targets,
    Transformation,
)
from occinv.rng import split
from occinv.schema import UserError
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, random_visible, rectangles_visible
from occinv.transforms.view import View, denormalize, normalize, whole


class Decoded(NamedTuple):
    """What Eq. (8) needs of T2(x), patches [B, N, P]."""

    compared: jax.Array  # with z1: d(f(T2 x)), or that of their EMA
    online: jax.Array  # d(f(T2 x)), which the constraint holds to the pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Objective):
    """M(f(T1 x), target(T2 x)), of any axes that can work together (see `Combination.refusal`).

    Two maskings of one kind are the two parts of an image, Eq. (6); else T2 removes patches of its
    own. Tokens are compared patch by patch: by InfoNCE and BYOL all of them, as in C-MAE, otherwise
    those that T1 removes and T2 shows, or all that T2 shows where T1 removes none. Views of two
    crops share no patch: there it is the mean of the patch tokens.

    Removed patches are dropped where M decodes, and where only T2 has any, for no gradient would
    teach a token in their place; else they enter f as a learnable token.

    Attributes:
      t1, t2: `identity`, color `jitter`, another random `crop`, `masking` of patches or `blocks`.
      targets: `pixels`, `ids` of a tokenizer, or features of the same `encoder` or its `ema`.
      similarity: `pixel_l2` is MAE's; `decoder_distance` Eq. (8) with its constraint, R-MAE's;
        `infonce` and `byol` C-MAE's, with projector and predictor; `cross_entropy` BEiT's of ids,
        and of features DINO's, centered; `smoothed_l1` to standardized features, data2vec's. To the
        same encoder, gradients flow through both sides under the decoder's distance and InfoNCE;
        under the others z2 has none (SimSiam).
      mask_ratio: of patches that T1 removes.
      t2_mask_ratio: of those that T2 removes, where it is not the complement.
      min_rectangle: in patches, of those that are removed at once.
      crop_scale: of a crop's area; None: `data.crop_scale`.
      color: the jitter.
      tokenizer: of ids, as in BEiT.
      temperature: of InfoNCE.
      momentum: of the EMA, which moves before the forward pass.
      head_hidden, head_out: of projector and predictor; of the head before its prototypes.
      num_prototypes: whose probabilities the centered cross-entropy compares.
      decoder_width, decoder_depth, decoder_heads: of d.
    """

    t1: Transformation = "masking"
    t2: Transformation = "masking"
    targets: Targets = "ema"
    similarity: Similarity = "infonce"
    mask_ratio: float = 0.75
    t2_mask_ratio: float = 0.25
    min_rectangle: int = 16
    crop_scale: tuple[float, float] | None = None
    color: ColorJitter = ColorJitter()
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "kmeans"})
    temperature: float = 0.2
    momentum: float = 0.996
    head_hidden: int = 2048
    head_out: int = 256
    num_prototypes: int = 4096
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    paper: ClassVar[str] = "Kong and Zhang 2023, arXiv:2208.04164"

    def __post_init__(self) -> None:
        if refusal := self.combination.refusal:
            raise UserError(refusal)
        kept, kept_by_t2 = self.kept
        if self.t1 in OCCLUSIONS and kept_by_t2 <= kept and self.t1 != self.t2:
            raise UserError(
                f"objective.t2_mask_ratio={self.t2_mask_ratio}, expected less than "
                f"objective.mask_ratio={self.mask_ratio}: else T2 may show nothing that T1 removes"
            )
        if self.targets == "ids":
            self.codebook  # noqa: B018 (raises if it cannot be)
        if self.similarity == "infonce" and 1 == self.setting.batch_size < self.setting.num_images:
            raise UserError(
                "train.batch_size=1 with objective.similarity='infonce': the negatives are the "
                "other images of a batch; use 2 or more, or objective.similarity='byol'"
            )

    @property
    def combination(self) -> Combination:
        """The four axes."""
        return Combination(self.t1, self.t2, self.targets, self.similarity)

    @property
    def kept(self) -> tuple[int, int]:
        """How many patches T1 and T2 keep."""
        count = self.encoder.num_patches
        kept = kept_patches(count, self.mask_ratio) if self.t1 in OCCLUSIONS else count
        if self.t2 not in OCCLUSIONS:
            return kept, count
        is_complement = self.t1 == self.t2
        return kept, count - kept if is_complement else kept_patches(count, self.t2_mask_ratio)

    @property
    def axes(self) -> Axes:
        words = {
            "jitter": "color",
            "masking": "{:.0%} removed",
            "blocks": "{:.0%} removed in blocks",
        }
        t1 = words.get(self.t1, self.t1).format(self.mask_ratio)
        t2 = words.get(self.t2, self.t2).format(self.t2_mask_ratio)
        is_complement = self.t1 == self.t2 and self.t1 in OCCLUSIONS
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
            "cross_entropy": "cross-entropy" if self.targets == "ids" else "centered cross-entropy",
            "smoothed_l1": "smoothed L1",
        }[self.similarity]
        return Axes(t1, "the complement" if is_complement else t2, target, measure)

    @property
    def trains_target(self) -> bool:
        """Whether z2 has a gradient."""
        return self.targets == "encoder" and self.similarity in ("decoder_distance", "infonce")

    @property
    def crops(self) -> tuple[Crop, ...]:
        size = self.encoder.image_size
        return tuple(Crop(size, self.crop_scale) for t in (self.t1, self.t2) if t == "crop")

    @property
    def learns_late(self) -> dict[tuple[str, ...], int | None]:
        has_prototypes = self.similarity == "cross_entropy" and self.targets != "ids"
        return {(*LAST, "scale"): None} if has_prototypes else {}

    @property
    def couples_batch(self) -> bool:
        return self.similarity == "infonce"

    @property
    def couples_before_measure(self) -> bool:
        return False

    @property
    def encoder(self) -> ViT:
        decodes = self.similarity in ("pixel_l2", "decoder_distance")
        return self.setting.encoder.clone(mask_token=self.t1 in OCCLUSIONS and not decodes)

    @property
    def codebook(self) -> Tokenizer:
        """The tokenizer; its parameters are part of the state."""
        return make_tokenizer(self.tokenizer, self.encoder.image_size, self.encoder.patch_size)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What M learns, by name: z1 passes all of it in this order, z2 all but the predictor."""
        width, dtype = self.encoder.width, self.setting.dtype
        if self.similarity in ("pixel_l2", "decoder_distance"):
            sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
            return {"decoder": decoder_of(self.encoder, *sizes, dtype)}
        if self.similarity in ("infonce", "byol"):
            mlp = MlpHead(self.head_hidden, self.head_out, dtype=dtype)
            return {"projector": mlp, "predictor": mlp}
        if self.similarity == "smoothed_l1":
            return {"predictor": nn.Dense(width, kernel_init=TOKEN_INIT, dtype=dtype)}
        if self.targets == "ids":
            ids = self.codebook.num_ids
            return {"head": nn.Dense(ids, kernel_init=TOKEN_INIT, dtype=dtype)}
        sizes = self.head_hidden, self.head_out, self.num_prototypes
        return {"head": PrototypeHead(*sizes, unit_prototypes=True, dtype=dtype)}

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, *keys = jax.random.split(key, 1 + len(self.heads))
        params = {"encoder": self.init_encoder(encoder_key, encoder)}
        count = self.encoder.num_patches
        z: Any = jnp.zeros((1, 1 + count, self.encoder.width))
        rest = (jnp.ones((1, count), bool),) if "decoder" in self.heads else ()
        for (name, head), head_key in zip(self.heads.items(), keys, strict=True):
            z, made = head.init_with_output(head_key, z, *rest)
            params[name] = made["params"]
        state: State = {}
        if self.targets == "ids":
            state["tokenizer"] = self.codebook.init()
        if self.targets == "ema":
            state["target"] = {name: params[name] for name in params if name != "predictor"}
        if self.similarity == "cross_entropy" and self.targets != "ids":
            state["center"] = jnp.zeros(self.num_prototypes)
        return params, state

    def furnish(self, read: Read, images: Images) -> Callable[[State], State] | None:
        """The tokenizer, from its own run or fitted to the images."""
        if self.targets != "ids":
            return None
        obtain = self.codebook.obtain(read, images)
        return lambda state: {**state, "tokenizer": obtain()}

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        """The EMA follows before the forward pass."""
        del step
        if self.targets != "ema":
            return state
        online = {name: params[name] for name in state["target"]}
        return {**state, "target": moved(state["target"], online, self.momentum)}

    def observe(
        self, state: State, sources: dict[int, Any], targets: dict[int, Any], weight: jax.Array
    ) -> State:
        """The center moves by what the prototypes have been of z2."""
        del sources
        if "center" not in state:
            return state
        seen = weight / weight.sum() @ targets[1].mean(1)
        return {**state, "center": moved(state["center"], seen, DINO.center_momentum)}

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        """T1(x) and T2(x)."""
        image, *crops = pixels if self.crops else (pixels,)
        first_keys, second_keys = split(keys, 2)
        first = self.view(self.t1, crops[0] if self.t1 == "crop" else image, first_keys, 0)
        second = self.view(self.t2, crops[-1] if self.t2 == "crop" else image, second_keys, 1)
        if self.t1 == self.t2 and self.t1 in OCCLUSIONS:
            second = View(second.pixels, ~first.visible, second.kept)
        return first, second

    def view(self, name: Transformation, pixels: jax.Array, keys: jax.Array, number: int) -> View:
        """The transformation of that name, T1 if `number` is 0 and T2 if it is 1."""
        count, kept = self.encoder.num_patches, self.kept[number]
        image = normalize(self.color(keys, pixels) if name == "jitter" else pixels)
        if name == "masking":
            return View(image, random_visible(keys, count, kept), kept)
        if name == "blocks":
            return View(image, rectangles_visible(keys, count, kept, self.min_rectangle), kept)
        return whole(image, count)

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> jax.Array:
        """z1: what M makes of f(view), the predictor's word if there is one: float32 [B, T, …]."""
        return self.through("predictor", params, self.project(params, view, keys))

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """z2: patches or ids [B, N], Decoded, or what M makes of features [B, T, …]."""
        del batch
        if self.targets == "pixels":
            return self.patches(view)
        if self.targets == "ids":
            return self.codebook.ids(state["tokenizer"], denormalize(view.pixels))
        if self.targets == "ema":
            z2 = self.project(state["target"], view, None)
        else:
            z2 = self.project(params, view, keys)
        if self.similarity == "smoothed_l1":
            z2 = jax.nn.standardize(z2)  # or else a small feature would be an easy answer
        z2 = z2 if self.trains_target else jax.lax.stop_gradient(z2)
        if self.similarity == "decoder_distance":
            online = z2 if self.targets == "encoder" else self.project(params, view, keys)
            return Decoded(z2, online)
        return z2

    def patches(self, view: View) -> jax.Array:
        """The patches of a view's image, each to mean 0 and deviation 1: [B, N, P]."""
        return normalize_patches(patchify(view.pixels, self.encoder.patch_size))

    def project(self, params: Params, view: View, keys: jax.Array | None) -> jax.Array:
        """What M makes of f(view) on either side: float32 [B, T, …]."""
        tokens = self.encode(params, view, keys).tokens
        if "decoder" in self.heads:
            return self.heads["decoder"].apply(  # type: ignore[return-value]
                {"params": params["decoder"]}, tokens, view.visible
            )
        tokens = tokens[:, 1:]
        if self.crops:
            tokens = tokens.mean(1, keepdims=True)
        elif tokens.shape[1] < self.encoder.num_patches:
            tokens = restore(tokens, view.visible, jnp.float32(0))
        return self.through("head", params, self.through("projector", params, tokens))

    def through(self, name: str, params: Params, z: jax.Array) -> jax.Array:
        """z through the head of that name, in float32, or as it is if M has none."""
        if name not in self.heads:
            return z
        found: Any = self.heads[name].apply({"params": params[name]}, z)
        return found.astype(jnp.float32)

    def compared(self, view1: View, view2: View) -> jax.Array:
        """bool [B, T]: the tokens that M is taken on."""
        if self.crops:
            return jnp.ones_like(view1.visible[:, :1])
        if self.t1 not in OCCLUSIONS:
            return view2.visible
        if self.similarity in ("infonce", "byol"):
            return jnp.ones_like(view2.visible)
        return ~view1.visible & view2.visible

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over the tokens that are compared, and what tells how M fares."""
        del params
        region = self.compared(view1, view2)
        if self.similarity == "pixel_l2":
            return patch_distance(z1, z2, region), {}
        if self.similarity == "decoder_distance":
            distance = patch_distance(z1, z2.compared, region)
            constraint = patch_distance(z2.online, self.patches(view2), view2.visible)
            return distance + constraint, {"distance": distance, "constraint": constraint}
        if self.similarity == "infonce":
            loss, agrees = chunked_info_nce(z1, z2, "position", self.temperature)
            metrics = {"agreement": agrees}
        elif self.similarity == "byol":
            loss, metrics = byol(z1, z2), {}
        elif self.similarity == "smoothed_l1":
            loss = smooth_l1(z1, z2, Data2Vec.beta).mean(-1)
            metrics = {"similarity": cosine(z1, z2)}
        elif self.targets == "ids":
            loss = cross_entropy(z1, z2, smoothing=0.0)
            metrics = {"accuracy": (z1.argmax(-1) == z2).astype(jnp.float32)}
        else:
            centered = (z2 - state["center"]) / DINO.teacher_temperature
            teacher = jax.nn.softmax(centered)
            loss = soft_cross_entropy(z1 / DINO.student_temperature, teacher)
            metrics = {"teacher_entropy": soft_cross_entropy(centered, teacher)}
        return mean_over(loss, region), {
            name: mean_over(value, region) for name, value in metrics.items()
        }
