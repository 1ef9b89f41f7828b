"""Records models of timm and transformers, and checks exports with these libraries.

    python tests/weights/with_libraries.py record
    python tests/weights/with_libraries.py check

`record` writes tests/reference/libraries: for each model the files that the library saves, and its
output for random images. The tests import these files and compare features, export them again and
compare every array and field. `check` loads the exports in the libraries and compares their output
with the recorded one. Both need torch, torchvision, timm and transformers, which are too large for
the extra [dev] (5 GB); versions.json has the versions of the record. All weights are random, so
that no parameter has a special value.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import save_for_hf

FOLDER = Path(__file__).resolve().parent.parent / "reference" / "libraries"
SIZE, PATCH, WIDTH, DEPTH, HEADS = 16, 4, 24, 2, 3
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
           "image_size": SIZE, "patch_size": PATCH}  # fmt: skip
MLP = {"intermediate_size": 4 * WIDTH}
TIMM = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH,
        "num_heads": HEADS}  # fmt: skip


def models() -> dict[str, tuple[Any, tuple[list[float], list[float]] | None]]:
    """Returns each model by name, and the mean and standard deviation of its pixels."""
    hf = transformers
    small_decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
                     "decoder_num_attention_heads": 4, "decoder_intermediate_size": 128,
                     "norm_pix_loss": True}  # fmt: skip
    return {
        "hf_vit": (
            hf.ViTForImageClassification(
                hf.ViTConfig(**ENCODER, **MLP, num_labels=3, layer_norm_eps=1e-6)
            ),
            HALF,
        ),
        "hf_vit_mae": (
            hf.ViTMAEForPreTraining(
                hf.ViTMAEConfig(**ENCODER, **MLP, **small_decoder, layer_norm_eps=1e-6)
            ),
            IMAGENET,
        ),
        "hf_dinov2": (hf.Dinov2Model(hf.Dinov2Config(**ENCODER, hidden_act="gelu_new")), IMAGENET),
        "hf_dinov2_registers": (
            hf.Dinov2WithRegistersModel(
                hf.Dinov2WithRegistersConfig(**ENCODER, num_register_tokens=2)
            ),
            IMAGENET,
        ),
        "hf_beit": (
            hf.BeitForImageClassification(
                hf.BeitConfig(
                    **ENCODER,
                    **MLP,
                    num_labels=3,
                    use_relative_position_bias=True,
                    layer_norm_eps=1e-6,
                )
            ),
            HALF,
        ),
        "hf_ijepa": (
            hf.IJepaModel(hf.IJepaConfig(**ENCODER, **MLP), add_pooling_layer=False),
            IMAGENET,
        ),
        "timm_vit": (timm.models.VisionTransformer(**TIMM, num_classes=3), HALF),
        "timm_registers": (
            timm.models.VisionTransformer(
                **TIMM, num_classes=0, reg_tokens=2, no_embed_class=True, init_values=0.1
            ),
            IMAGENET,
        ),
        "timm_without_class_token": (
            timm.models.VisionTransformer(
                **TIMM, num_classes=3, class_token=False, global_pool="avg", init_values=0.1
            ),
            HALF,
        ),
    }


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Draws every parameter: factors near 1, others near 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_factor = value.ndim == 1 and not name.endswith("bias")
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(0.2 * noise + (1.0 if is_factor else 0.0))
    return model.eval()


def output(model: Any, images: np.ndarray, pixels: Any) -> dict[str, np.ndarray]:
    """Returns the features [B, tokens, D] of a model, and its logits or predicted patches."""
    mean, std = (torch.tensor(value) for value in pixels)
    x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        if isinstance(model, timm.models.VisionTransformer):
            found = {"tokens": model.forward_features(x)}
            return numpy(found | ({"logits": model(x)} if model.num_classes else {}))
        if isinstance(model, transformers.ViTMAEForPreTraining):
            model.config.mask_ratio = 0.75
            noise = torch.linspace(0, 1, (SIZE // PATCH) ** 2).expand(len(x), -1)  # keeps the first
            found = {"predicted": model(x, noise=noise).logits}
            model.config.mask_ratio = 0.0
            return numpy(found | {"tokens": model.vit(x, noise=noise).last_hidden_state})
        base = getattr(model, model.base_model_prefix, model)
        found = {"tokens": base(x).last_hidden_state}
        return numpy(found | ({"logits": model(x).logits} if base is not model else {}))


def numpy(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in values.items()}


def save(model: Any, pixels: Any, folder: Path) -> None:
    """Writes the files that the library writes."""
    if isinstance(model, timm.models.VisionTransformer):
        folder.mkdir(parents=True)
        model.pretrained_cfg = {
            "architecture": "vit_tiny_patch16_224",
            "input_size": [3, SIZE, SIZE],
            "mean": pixels[0],
            "std": pixels[1],
        }
        save_for_hf(model, folder, model_args=TIMM, safe_serialization=True)
        return
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        image_mean=pixels[0], image_std=pixels[1], size={"height": SIZE, "width": SIZE}
    )
    processor.save_pretrained(folder)


def record() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    for name, (model, pixels) in models().items():
        randomize(model)
        save(model, pixels, FOLDER / name)
        np.savez(FOLDER / name / "output.npz", images=images, **output(model, images, pixels))
    record_checkpoints()
    versions = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


def record_checkpoints() -> None:
    """Writes what training scripts save, in both formats of PyTorch and with other dtypes."""
    model = randomize(timm.models.VisionTransformer(img_size=4, patch_size=2, embed_dim=8, depth=1,
                                                    num_heads=2, num_classes=0))  # fmt: skip
    state = model.state_dict()  # an OrderedDict with versions of modules
    flat = torch.arange(6.0)
    content = {
        "model": OrderedDict((name, torch.nn.Parameter(value)) for name, value in state.items()),
        "optimizer": {"state": {0: {"step": torch.tensor(3), "moment": flat[2:]}}, "view": flat},
        "args": argparse.Namespace(lr=1e-3, size=torch.Size([1]), best=np.float64(0.5)),
        "scaler": None,
        "dtype": torch.float32,
    }
    folder = FOLDER / "torch"
    folder.mkdir()
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, folder / "float32.pth")
    for dtype in ("bfloat16", "float16", "float64"):
        cast = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
        torch.save(cast, folder / f"{dtype}.pth")
    save_file(state, folder / "state.safetensors")


def check() -> None:
    from occinv.weights.export_weights import export_weights
    from occinv.weights.import_weights import import_weights

    for name, (model, pixels) in models().items():
        recorded = dict(np.load(FOLDER / name / "output.npz"))
        images = recorded.pop("images")
        with tempfile.TemporaryDirectory() as scratch:
            run, file = Path(scratch, "run"), Path(scratch, "export")
            import_weights(FOLDER / name, "auto", run)
            if name in ("hf_beit", "hf_ijepa"):
                continue  # have no export
            if isinstance(model, timm.models.VisionTransformer):
                said = export_weights(run, "timm", file)
                names: dict[str, Any] = {}
                exec(said.partition("load with:\n")[2], names)  # the program for the user
                model = names["model"]
            else:
                export_weights(run, "huggingface", file)
                found, info = type(model).from_pretrained(file, output_loading_info=True)
                assert not any(info.values()), info
                processor = transformers.ViTImageProcessor.from_pretrained(file)
                assert (list(processor.image_mean), list(processor.image_std)) == tuple(pixels)
                model = found
            again = output(model.eval(), images, pixels)
        assert set(again) == set(recorded)
        for key, value in recorded.items():
            np.testing.assert_allclose(again[key], value, rtol=1e-5, atol=1e-5)
        print(f"{name}: the export computes {', '.join(recorded)}")


if __name__ == "__main__":
    {"record": record, "check": check}[sys.argv[1]]()
