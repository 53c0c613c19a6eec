"""EVA-CLIP's vision transformer: EVA02 B, L and E, EVA-CLIP 8B and 18B.

Sun et al., arXiv 2303.15389 and 2402.04252. Parameters have timm's and open_clip's names, `visual.trunk.…`.
"""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.model.layers import LayerNorm, Linear, RMSNorm, put_tokens
from jclip.model.rotary import Rotation, grid_angles
from jclip.model.vit import Patches
from jclip.runtime import jt
from jclip.weights.variants import EVAConfig

nn = jt.nn


class EVATower(nn.Module):
    """Images to one embedding each, read at the class token; on request to one per patch as well."""

    def __init__(self, config: EVAConfig, embed_dim: int):
        self.trunk = Trunk(config, embed_dim)
        self.image_size = config.image_size

    def embed(self, images):
        """(B, 3, H, W) → (B, 1 + N, D): class token and patches, positions added."""
        return self.trunk.embed(images)

    def encode(self, tokens, **options):
        """(B, 1 + N, D) from `embed`, prompts appended or not → pooled (B, E); with `dense` also (B, N, E)."""
        return self.trunk(tokens, **options)

    def execute(self, images, **options):
        """As `VisionTransformer`."""
        return self.encode(self.embed(images), **options)


class Trunk(nn.Module):
    """What open_clip's files keep under `visual.trunk`."""

    def __init__(self, config: EVAConfig, embed_dim: int):
        width, cells = config.width, config.grid[0] * config.grid[1]
        self.patch_embed = Patches(width, config.patch_size)
        self.cls_token = jt.init.gauss((1, 1, width), "float32", std=0.02)
        self.pos_embed = jt.init.gauss((1, 1 + cells, width), "float32", std=0.02)
        self._rope = rotation_of(config) if config.rope else None
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = norm_of(config, width)
        self.head = Linear(width, embed_dim, std=0.02, bias=config.bias)

    def embed(self, images):
        """(B, 3, H, W) → (B, 1 + N, D)."""
        patches = self.patch_embed(images)
        first = self.cls_token.expand((patches.shape[0], 1, patches.shape[2]))
        return jt.concat([first.cast(patches.dtype), patches], dim=1) + self.pos_embed

    def execute(
        self,
        x,
        dense: str | None = None,
        insert: dict | None = None,
        taps: dict | None = None,
        penultimate: bool = False,
    ):
        """(B, 1 + N, D) → (B, E), with `penultimate` (B, D); with `dense` also (B, N, E)."""
        if taps is not None:
            taps["visual.stem"] = x
        entering, last = x, len(self.blocks) - 1
        first_alone = jt.flags.no_grad and dense is None and taps is None
        for i in range(len(self.blocks)):
            if insert and i in insert:
                x = put_tokens(x, *insert[i])
            entering, block = x, self.blocks[i]
            x = block.at_first(x, self._rope).unsqueeze(1) if first_alone and i == last else block(x, self._rope)
            if taps is not None:
                taps[f"visual.block{i}"] = x
        pooled = self.norm(x[:, 0])
        pooled = pooled if penultimate else self.head(pooled)
        if dense is None:
            return pooled
        if dense == "value":
            x = block.values(entering)
        return pooled, self.head(self.norm(x[:, 1 : self.pos_embed.shape[1]]))


class Block(nn.Module):
    """Pre-norm: x + f(norm(x)); post-norm (E, 18B): x + norm(f(x)), the residual itself stays as it is."""

    def __init__(self, config: EVAConfig):
        self.norm1 = norm_of(config, config.width)
        self.attn = (ApartAttention if config.sub_norm else PackedAttention)(config)
        self.norm2 = norm_of(config, config.width)
        self.mlp = GatedMLP(config) if config.swiglu else MLP(config)
        self.post_norm = config.post_norm

    def execute(self, x, rope: Rotation | None = None):
        if self.post_norm:
            x = x + self.norm1(self.attn(x, rope))
            return x + self.norm2(self.mlp(x))
        x = self.attn(self.norm1(x), rope, residual=x)
        return self.mlp(self.norm2(x), residual=x)

    def at_first(self, x, rope: Rotation | None = None):
        """(B, N, D) → (B, D): what `execute` returns for the first token, the others seen by it."""
        first = x[:, 0]
        if self.post_norm:
            first = first + self.norm1(self.attn.at_first(x, rope))
            return first + self.norm2(self.mlp(first))
        first = self.attn.at_first(self.norm1(x), rope, residual=first)
        return self.mlp(self.norm2(first), residual=first)

    def values(self, x):
        """(B, N, D) → (B, N, D): what each token would hand out if it attended to itself alone."""
        return self.norm1(self.attn.values(x)) if self.post_norm else self.attn.values(self.norm1(x))


class PackedAttention(nn.Module):
    """q, k and v in one projection; k has no bias, and in 8B and 18B nor have q and v."""

    def __init__(self, config: EVAConfig):
        width = config.width
        self.qkv = Linear(width, 3 * width, std=0.02, bias=False)
        self.q_bias = jt.zeros((width,)) if config.bias else None
        self.v_bias = jt.zeros((width,)) if config.bias else None
        self.proj = Linear(width, width, std=0.02)
        self.heads = config.heads

    def in_proj(self, x):
        """(B, N, D) → (B, N, 3D): q, k, v side by side."""
        bias = None if self.q_bias is None else jt.concat([self.q_bias, jt.zeros_like(self.q_bias), self.v_bias])
        return kernels.linear(x, self.qkv.weight, bias, half=True)

    def execute(self, x, rope: Rotation | None = None, residual=None):
        qkv = self.in_proj(x)
        mixed = kernels.attention(qkv, self.heads, angles=rope.angles if rope else None)
        return self.proj(mixed, residual=residual)

    def at_first(self, x, rope: Rotation | None = None, residual=None):
        """(B, N, D) → (B, D): what `execute` returns for the first token."""
        return self.proj(of_first(self.in_proj(x), rope, self.heads), residual=residual)

    def values(self, x):
        """Values as of `Block.values`, before the norm."""
        return self.proj(self.in_proj(x)[:, :, 2 * x.shape[2] :].float32())


class ApartAttention(nn.Module):
    """q, k and v apart, and a norm over the joined heads: "sub-LN"."""

    def __init__(self, config: EVAConfig):
        width = config.width
        self.q_proj = Linear(width, width, std=0.02, bias=config.bias)
        self.k_proj = Linear(width, width, std=0.02, bias=False)
        self.v_proj = Linear(width, width, std=0.02, bias=config.bias)
        self.norm = norm_of(config, width)
        self.proj = Linear(width, width, std=0.02)
        self.heads = config.heads

    def in_proj(self, x):
        """(B, N, D) → (B, N, 3D): q, k, v side by side."""
        return jt.concat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=2)

    def execute(self, x, rope: Rotation | None = None, residual=None):
        qkv = self.in_proj(x)
        mixed = kernels.attention(qkv, self.heads, angles=rope.angles if rope else None)
        return self.proj(self.norm(mixed), residual=residual)

    def at_first(self, x, rope: Rotation | None = None, residual=None):
        """(B, N, D) → (B, D): what `execute` returns for the first token."""
        return self.proj(self.norm(of_first(self.in_proj(x), rope, self.heads)), residual=residual)

    def values(self, x):
        """As `Block.values`."""
        return self.proj(self.norm(self.v_proj(x)))


def of_first(qkv, rope: Rotation | None, heads: int):
    """(B, N, 3D) → (B, D): what the first token, which does not turn, takes from all of them."""
    width, turned = qkv.shape[2] // 3, rope(qkv) if rope else qkv
    return kernels.class_attention(turned[:, 0, :width].float32(), turned[:, :, width:], heads)


class MLP(nn.Module):
    """fc2 GELU(fc1 x)."""

    def __init__(self, config: EVAConfig):
        self.fc1 = Linear(config.width, config.mlp_width, std=0.02)
        self.fc2 = Linear(config.mlp_width, config.width, std=0.02)

    def execute(self, x, residual=None):
        return self.fc2(self.fc1(x, "gelu", half=True), residual=residual)


class GatedMLP(nn.Module):
    """SwiGLU: fc2 norm(SiLU(fc1_g x) * fc1_x x)."""

    def __init__(self, config: EVAConfig):
        self.fc1_g = Linear(config.width, config.mlp_width, std=0.02)
        self.fc1_x = Linear(config.width, config.mlp_width, std=0.02)
        if config.sub_norm:
            self.norm = norm_of(config, config.mlp_width)
        self.sub_norm = config.sub_norm
        self.fc2 = Linear(config.mlp_width, config.width, std=0.02)

    def execute(self, x, residual=None):
        gate = self.fc1_g(x)
        hidden = gate * jt.sigmoid(gate) * self.fc1_x(x)
        return self.fc2(self.norm(hidden) if self.sub_norm else hidden, residual=residual)


def rotation_of(config: EVAConfig) -> Rotation:
    """Rotary positions of the patches, scaled to the grid of pre-training."""
    vertical, horizontal = (np.arange(side) / side * config.rope_grid for side in config.grid)
    return Rotation(grid_angles(vertical, horizontal, config.width // config.heads, columns_first=False))


def norm_of(config: EVAConfig, width: int) -> LayerNorm | RMSNorm:
    """The tower's kind of norm."""
    return (RMSNorm if config.rms_norm else LayerNorm)(width, config.norm_eps)
