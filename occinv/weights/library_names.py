"""Converts names of transformers and mmpretrain to the names of MAE and timm, and back.

Both libraries have the layouts of PyTorch. The tables follow transformers 4 and 5 (`ViTModel`,
`ViTMAEForPreTraining`, `Dinov2Model`, `BeitModel`, `IJepaModel`) and mmpretrain 1
(`VisionTransformer`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from occinv.schema import UserError

Style = Literal["pytorch", "huggingface", "mmpretrain", "big_vision"]
Rules = tuple[tuple[str, str], ...]  # regular expressions and what replaces them, in this order
PATCH_EMBED: dict[Style, str] = {  # the end of the key that shows the names of a library
    "pytorch": "patch_embed.proj.weight",
    "huggingface": "embeddings.patch_embeddings.projection.weight",
    "mmpretrain": "patch_embed.projection.weight",
    "big_vision": "embedding/kernel",
}
OWN: dict[Style, str] = {  # the prefix of the encoder beside a head or a decoder
    "huggingface": r"(vit|deit|dinov2|dinov2_with_registers|beit|ijepa|data2vec_vision)\.",
    "mmpretrain": r"backbone\.",
}
BEIT_TABLE = "relative_position_bias.relative_position_bias_table"
RULES: dict[Style, Rules] = {
    "pytorch": ((r"\.(gamma|lambda)_([12])$", r".ls\2.gamma"),),  # BEiT, DeiT III
    "big_vision": (),
    "huggingface": (
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder_blocks."),
        (r"^decoder\.(mask_token|decoder_(embed|pos_embed|norm|pred)\b)", r"\1"),
        (rf"^encoder\.{BEIT_TABLE}$", "rel_pos_bias.relative_position_bias_table"),
        (r"^(encoder\.)?layers?\.(?=\d)", "blocks."),
        (r"\.attention\.(attention\.)?(q|k|v|query|key|value)(_proj)?\.", r".attn.\2."),
        (r"\.attn\.(q)uery\.|\.attn\.(k)ey\.|\.attn\.(v)alue\.", r".attn.\1\2\3."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (rf"\.attention\.(attention\.)?{BEIT_TABLE}$", ".attn.relative_position_bias_table"),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.lambda_([12])$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^pooler\.layernorm\.", "fc_norm."),
        (r"^classifier\.", "head."),
    ),
    "mmpretrain": (
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"\.attn\.gamma1\.weight$", ".ls1.gamma"),
        (r"\.ffn\.gamma2\.weight$", ".ls2.gamma"),
        (r"^(ln1|norm1)\.", "norm."),
        (r"^ln2\.", "fc_norm."),
        (r"^head\.(layers\.head|fc)\.", "head."),
    ),
}
TO_DINOV2: Rules = (
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^blocks\.", "encoder.layer."),
    (r"^decoder_(embed|pos_embed|norm|pred)\b", r"decoder.decoder_\1"),
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
)
TO_VIT: Rules = (
    *TO_DINOV2,
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def renamed(name: str, rules: Rules) -> str:
    """Return `name` after the replacements of `rules`, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def to_pytorch_names(keys: Mapping[str, str], style: Style) -> dict[str, str]:
    """Return name -> key with the names of MAE and timm.

    Args:
      keys: Name -> key with the names of `style`.
      style: The names.

    Raises:
      UserError: Two keys are the same parameter.
    """
    found: dict[str, str] = {}
    for name, key in keys.items():
        own = OWN.get(style)
        name = renamed(re.sub(f"^{own}", "", name) if own else name, RULES[style])
        if name in found:
            raise UserError(f"{key} and {found[name]} are the same parameter. Expected one.")
        found[name] = key
    return found
