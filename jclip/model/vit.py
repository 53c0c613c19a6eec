"""CLIP's vision transformer."""

from __future__ import annotations

from jclip import kernels
from jclip.model.layers import LayerNorm, Transformer, put_tokens
from jclip.runtime import jt
from jclip.weights.variants import ViTConfig

nn = jt.nn


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product: (B, 3, H, W) → (B, N, D), row by row."""

    def __init__(self, width: int, patch: int, bias: bool = False):
        self.weight = jt.init.gauss((width, 3, patch, patch), "float32", std=(3 * patch * patch) ** -0.5)
        self.bias = jt.zeros((width,)) if bias else None
        self.patch = patch

    def execute(self, images):
        weight = self.weight
        weight = weight.reshape((weight.shape[0], -1)) if weight.ndim == 4 else weight  # else (N, K) in half precision
        return kernels.linear(kernels.cells(images, self.patch, weight), weight, self.bias)


class Patches(nn.Module):
    """A `PatchEmbedding` with a bias, under timm's name."""

    def __init__(self, width: int, patch: int):
        self.proj = PatchEmbedding(width, patch, bias=True)

    def execute(self, images):
        return self.proj(images)


class VisionTransformer(nn.Module):
    """Images to one embedding each, read at the class token; on request to one per patch as well."""

    def __init__(self, config: ViTConfig, embed_dim: int, activation: str, eps: float):
        width, (rows, columns) = config.width, config.grid
        scale = width**-0.5
        self.conv1 = PatchEmbedding(width, config.patch_size)
        self.class_embedding = jt.init.gauss((width,), "float32", std=scale)
        self.positional_embedding = jt.init.gauss((1 + rows * columns, width), "float32", std=scale)
        self.ln_pre = LayerNorm(width, eps)
        self.transformer = Transformer(config, activation, eps)
        self.ln_post = LayerNorm(width, eps)
        self.proj = jt.init.gauss((width, embed_dim), "float32", std=scale)
        self.proj_bias = jt.zeros((embed_dim,)) if config.proj_bias else None
        self.image_size = config.image_size
        self._patches = rows * columns

    def embed(self, images, positions=None):
        """(B, 3, H, W) → (B, 1 + N, D): class token and patches, positions added, before `ln_pre`.

        positions: (1 + N, D) in place of the tower's own, for photos of another size.
        """
        patches = self.conv1(images)
        first = self.class_embedding.reshape((1, 1, -1)).expand((patches.shape[0], 1, patches.shape[2]))
        return jt.concat([first.cast(patches.dtype), patches], dim=1) + (
            self.positional_embedding if positions is None else positions
        )

    def encode(
        self,
        tokens,
        dense: str | None = None,
        insert: dict | None = None,
        taps: dict | None = None,
        penultimate: bool = False,
        patches: int = 0,
    ):
        """(B, 1 + N, D) from `embed`, prompts appended or not → pooled (B, E); with `dense` also (B, N, E).

        patches: N of photos of another size than the tower's.
        """
        last = len(self.transformer.resblocks) - 1
        options = {"insert": insert, "taps": taps, "name": "visual."}
        x = self.ln_pre(tokens)
        if taps is not None:
            taps["visual.stem"] = x
        entering = self.transformer(x, layers=range(last), **options)
        if jt.flags.no_grad and dense is None and taps is None:
            tokens = put_tokens(entering, *insert[last]) if insert and last in insert else entering
            return self._pooled(self.transformer.resblocks[last].at_first(tokens), penultimate)
        x = self.transformer(entering, layers=[last], **options)
        pooled = self._pooled(x[:, 0], penultimate)
        if dense is None:
            return pooled
        if dense == "value":
            block = self.transformer.resblocks[last]
            x = block.attn.values(block.ln_1(entering))
        cells = x[:, 1 : 1 + (patches or self._patches)]
        return pooled, kernels.linear(self.ln_post(cells), self.proj.transpose(0, 1), self.proj_bias)

    def project(self, pooled):
        """(B, D) → (B, E)."""
        projected = jt.matmul(pooled, self.proj)
        return projected if self.proj_bias is None else projected + self.proj_bias

    def _pooled(self, first, penultimate: bool):
        pooled = self.ln_post(first)
        return pooled if penultimate else self.project(pooled)

    def execute(self, images, **options):
        """(B, 3, H, W) → (B, E); with `dense` also (B, N, E), patches row by row. options: as of `encode`.

        dense: "value" takes what the last block's value projection makes of each patch, without attention; "token" the
        last block's output. Neither is normalised. penultimate: pooled (B, D), before the projection.
        """
        return self.encode(self.embed(images), **options)
