"""How much memory a training step of the towers takes, from their shapes: printed before the first step. No Jittor.

Counted in numbers of four bytes: weights; of what is trained gradients, moments and averages; and what the forward pass
keeps for the backward pass. A transformer's block keeps 9 D + 2 M numbers a token (its input, norms, q k v, the mixed
values, both residuals, and M before and after the activation; no attention matrix, which is recomputed), and its
backward pass holds another 9 D for a while. Computed again it keeps D. A convolution keeps its output twice and a half.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from jclip.config import OptimConfig
from jclip.weights.variants import CLIPConfig, PatchTower, ResNetConfig, TextConfig

PROCESS = 90 * 2**20  # bytes of the interpreter, Jittor and its operators
KEPT, MOVING = 9, 9  # numbers of width D a token: kept of a block, and more while its gradient is computed
OF_A_CONVOLUTION = 2.5
OF_SCORES = 6  # (B, B) arrays of the loss and its gradient


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for."""

    process: int
    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / 2**20:,.0f}" for field in fields(self))
        return f"about {self.total / 2**20:,.0f} MiB ({parts})"


@dataclass(frozen=True)
class StepSize:
    """What a step computes at once: `pairs` of a part, `parts` of them, tokens of a text, the share of patches that a ViT
    sees, and which towers gradients pass."""

    pairs: int
    parts: int = 1
    tokens: int = 77
    patches: float = 1.0
    image: bool = True
    text: bool = True
    recompute: bool = False


def estimate(
    config: CLIPConfig, weights: int, trained: int, optim: OptimConfig, step: StepSize, other: int = 0
) -> MemoryEstimate:
    """The memory of a step that trains `trained` of `weights` numbers. other: numbers of a further model, such as a teacher."""
    moments = (2 if optim.name == "adamw" else 1) + (1 if optim.average else 0)
    towers = _image_tower(config, step) + _transformer(config.text, step.tokens, step.text, step.recompute)
    scores = OF_SCORES * (step.pairs * step.parts) ** 2
    pixels = 2 * 3 * config.vision.image_size[0] * config.vision.image_size[1] * step.pairs * step.parts
    activations = step.pairs * towers + scores + pixels
    return MemoryEstimate(PROCESS, 4 * (weights + other), 4 * trained, 4 * moments * trained, round(4 * activations))


def _image_tower(config: CLIPConfig, step: StepSize) -> float:
    """Numbers an image."""
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        return _resnet(vision, step.image)
    rows, columns = vision.grid
    return _transformer(vision, 1 + max(1, int(rows * columns * step.patches)), step.image, step.recompute)


def _transformer(tower: PatchTower | TextConfig, tokens: int, trained: bool, recompute: bool) -> float:
    """Numbers a sequence; without gradients one block's alone."""
    whole, width = KEPT * tower.width + 2 * tower.mlp_width, tower.width
    blocks = tower.layers if trained else 0
    kept = blocks * width + whole if recompute or not trained else blocks * whole
    return tokens * (kept + MOVING * width)


def _resnet(vision: ResNetConfig, trained: bool) -> float:
    """Numbers an image; without gradients those of the stem alone, which has the largest maps."""
    height, width = (side // 2 for side in vision.image_size)
    half = vision.width // 2
    stem = height * width * (half + half + vision.width)
    total, cells, inputs = stem, height * width // 4, vision.width
    for stage, blocks in enumerate(vision.layers):
        planes = vision.width * 2**stage
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            after = cells // stride**2
            total += (
                cells * 2 * planes
                + after * 4 * planes * (2 if block == 0 else 1)
                + (cells * planes if stride > 1 else 0)
            )
            cells, inputs = after, 4 * planes
    return OF_A_CONVOLUTION * (total if trained else stem) + cells * inputs
