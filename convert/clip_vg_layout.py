"""The parameters of CLIP-VG's own model, by name and in its order: which of the towers or the network each is.

Its `state_dict` has the towers three times, sharing their numbers: whole under `clip.`, and again as what encodes photos and
phrases; and a layer `visu_proj` that only the model of the last layer uses.
"""

from __future__ import annotations

from collections.abc import Iterable

from jclip.weights.variants import ViTConfig

REST = "clip_vg.safetensors"  # of a run: tensors that only the checkpoint had, names and data types of all of them
PHOTOS, PHRASES = "image_encoder_clip_vg.", "text_encoder_clip_vg."
UNUSED = ("visu_proj.weight", "visu_proj.bias")  # of the model of several levels
UNUSED_INPUTS = 512  # whatever the towers are
HEADS = 8  # by default; no shape shows them
MODELS = ("ViT-B/32", "ViT-B/16", "ViT-L/14")  # that its code knows
_BLOCK = (
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight", "ln_1.bias",
    "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias",
)  # fmt: skip
_LAYER = (
    "self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias",
    "linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias", "norm1.weight", "norm1.bias", "norm2.weight",
    "norm2.bias",
)  # fmt: skip


def state_names(vision: ViTConfig, text_blocks: int, layers: int, last: bool) -> list[str]:
    """Return the names of the model's `state_dict`. layers: of the fusion encoder; last: the model of the last layer."""
    visual, text = list(_visual_names(vision.layers)), list(_blocks("transformer", text_blocks))
    ends = ["ln_final.weight", "ln_final.bias"]
    towers = ["positional_embedding", "text_projection", "logit_scale", *(f"visual.{name}" for name in visual), *text]
    again = [f"{PHOTOS}{name}" for name in visual]
    again += [
        f"{PHRASES}{n}" for n in ("positional_embedding", "text_projection", *text, *ends, "token_embedding.weight")
    ]
    fusion = [f"vl_transformer.encoder.layers.{i}.{name}" for i in range(layers) for name in _LAYER]
    return [
        *(f"clip.{name}" for name in [*towers, "token_embedding.weight", *ends]),
        *UNUSED, "text_proj.weight", "text_proj.bias", "reg_token.weight", "vl_pos_embed.weight", *fusion,
        *([] if last else again),
        *(f"bbox_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        *([] if last else ["ml_visu_proj.weight", "ml_visu_proj.bias"]),
    ]  # fmt: skip


def tower_name(name: str) -> str | None:
    """Return which tensor of the towers a name of the model stands for; None for one of the network."""
    for start, own in (("clip.", ""), (PHOTOS, "visual."), (PHRASES, "")):
        if name.startswith(start):
            return own + name.removeprefix(start)
    return None


def _visual_names(blocks: int) -> Iterable[str]:
    yield from ("class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
    yield from _blocks("transformer", blocks)
    yield from ("ln_post.weight", "ln_post.bias")


def _blocks(place: str, blocks: int) -> Iterable[str]:
    return (f"{place}.resblocks.{i}.{name}" for i in range(blocks) for name in _BLOCK)
