"""Against open_clip, where it is installed: its ResNet is the one reference besides our own twin."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
open_clip = pytest.importorskip(
    "open_clip", reason="open_clip is not installed (pip install torch==2.13.0 open_clip_torch)"
)

from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.toys import TOY_RESNET, TOY_VIT, TOY_VIT_GELU, toy_batch, toy_file  # noqa: E402


def reference(config, arrays):
    """open_clip's plain CLIP with the same numbers and weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    t, v = config.text, config.vision
    text = CLIPTextCfg(
        t.context_length, t.vocab_size, width=t.width, heads=t.heads, layers=t.layers, mlp_ratio=t.mlp_width / t.width
    )
    if v.kind == "resnet":
        vision = CLIPVisionCfg(
            layers=v.layers, width=v.width, head_width=v.width * 32 // v.heads, image_size=v.image_size[0]
        )
    else:
        vision = CLIPVisionCfg(
            layers=v.layers, width=v.width, head_width=v.width // v.heads, mlp_ratio=v.mlp_width / v.width,
            patch_size=v.patch_size, image_size=v.image_size[0],
        )  # fmt: skip
    model = CLIP(config.embed_dim, vision, text, quick_gelu=config.activation == "quickgelu").eval()
    state = {k: torch.tensor(a).reshape(()) if k == "logit_scale" else torch.tensor(a) for k, a in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in k or "attn_mask" in k for k in missing), (
        missing,
        unexpected,
    )
    return model


@pytest.mark.parametrize("config", [TOY_VIT, TOY_VIT_GELU, TOY_RESNET], ids=["vit", "vit_gelu", "resnet"])
def test_features(config, tmp_path, close):
    for seed in (0, 1):
        checkpoint = open_checkpoint(toy_file(tmp_path, config, seed))
        model, theirs = build(checkpoint), reference(config, dict(checkpoint.arrays()))
        pixels, tokens = toy_batch(config, seed)
        with torch.no_grad(), jt.no_grad():
            wanted = theirs.encode_image(torch.tensor(pixels)), theirs.encode_text(torch.tensor(tokens).long())
            got = model.encode_image(pixels), model.encode_text(tokens)
        for kind, ours, other in zip(("image", "text"), got, wanted, strict=True):
            close(ours.numpy(), other, "features", f"toy {config.vision.kind} against open_clip: {kind}")
            unit = torch.nn.functional.normalize(other, dim=-1)
            close(
                normalise(ours).numpy(),
                unit,
                "features_normalised",
                f"toy {config.vision.kind} against open_clip: {kind}, normalised",
            )
