"""An image tower cut before what it ends with: what goes in there is computed once, the end trained and recomputed.

The end is a transformer's last block with its norm and projection, or attention pool, or a ResNet's attention pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jclip.model import clip
from jclip.model.eva import EVATower
from jclip.model.mobile import MobileTower
from jclip.model.parameter_groups import image_groups
from jclip.model.perception import PerceptionTower
from jclip.model.resnet import ModifiedResNet
from jclip.model.siglip import SigLIPTower
from jclip.model.trainable import trainable
from jclip.model.vit import VisionTransformer
from jclip.runtime import jt


class LastBlock:
    """The end of a model's image tower, computed with the parameters as they are."""

    def __init__(self, model: clip.CLIP):
        self._model, self._tower, self._kind = model, model.visual, KINDS[type(model.visual)]
        vision, self._start = model.config.vision, {}
        self._width = getattr(vision, "output_width", vision.width)

    def fresh(self) -> dict[str, jt.Var]:
        """Its parameters by name, to be trained, as they were at the first call; all others of the model are frozen."""
        groups = image_groups(self._model.config)[-self._kind.groups :]
        patterns = [pattern for group in groups for pattern in group]
        self._start = self._start or {k: v.numpy() for k, v in trainable(self._model, patterns).items()}
        self.put(self._start)
        return trainable(self._model, patterns)

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces its parameters by those of `arrays`, which may hold more."""
        params = self._model.state_dict()
        for name in self._start:
            params[name].update(jt.array(arrays[name]))

    def entering(self, pixels):
        """(B, 3, H, W) → (B, N D): a photo's tokens or cells as the end takes them, in one row."""
        x = self._kind.entering(self._tower, jt.array(pixels))
        return x.reshape((x.shape[0], -1))

    def leaving(self, rows):
        """(B, N D) as of `entering` → (B, E), not normalised: the photos' features."""
        return self._kind.leaving(self._tower, rows.reshape((rows.shape[0], -1, self._width)))


def vit_entering(tower: VisionTransformer, pixels):
    """(B, 3, H, W) → (B, 1 + N, D)."""
    tokens = tower.ln_pre(tower.embed(pixels))
    return tower.transformer(tokens, layers=range(len(tower.transformer.resblocks) - 1))


def vit_leaving(tower: VisionTransformer, x):
    """(B, 1 + N, D) → (B, E)."""
    last = len(tower.transformer.resblocks) - 1
    return tower.project(tower.ln_post(tower.transformer.resblocks[last].at_first(x)))


def perception_leaving(tower: PerceptionTower, x):
    """(B, 1 + N, D) → (B, E)."""
    return tower.leave(tower.transformer(x, layers=[len(tower.transformer.resblocks) - 1]))


def eva_entering(tower: EVATower, pixels):
    """(B, 3, H, W) → (B, 1 + N, D)."""
    trunk, x = tower.trunk, tower.trunk.embed(pixels)
    for i in range(len(trunk.blocks) - 1):
        x = trunk.blocks[i](x, trunk._rope)
    return x


def eva_leaving(tower: EVATower, x):
    """(B, 1 + N, D) → (B, E)."""
    trunk = tower.trunk
    return trunk.head(trunk.norm(trunk.blocks[len(trunk.blocks) - 1].at_first(x, trunk._rope)))


def siglip_entering(tower: SigLIPTower, pixels):
    """(B, 3, H, W) → (B, N, D)."""
    trunk, x = tower.trunk, tower.trunk.embed(pixels)
    for i in range(len(trunk.blocks) - 1):
        x = trunk.blocks[i](x)
    return x


def siglip_leaving(tower: SigLIPTower, x):
    """(B, N, D) → (B, E)."""
    trunk = tower.trunk
    return trunk.attn_pool(trunk.norm(trunk.blocks[len(trunk.blocks) - 1](x)))


class Kind(NamedTuple):
    """How a kind of tower is cut; groups: how many of the top ones of `image_groups` are its end."""

    entering: Callable
    leaving: Callable
    groups: int


KINDS = {
    VisionTransformer: Kind(vit_entering, vit_leaving, 2),
    MobileTower: Kind(vit_entering, vit_leaving, 2),
    PerceptionTower: Kind(vit_entering, perception_leaving, 2),
    EVATower: Kind(eva_entering, eva_leaving, 2),
    SigLIPTower: Kind(siglip_entering, siglip_leaving, 2),
    ModifiedResNet: Kind(ModifiedResNet.cells, lambda tower, cells: tower.attnpool(cells), 1),
}
