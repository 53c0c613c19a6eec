"""Both sides of `bench/gallery.py embed`: random ViT-B/32 weights over the same photos, to features of length one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from jclip.data.gallery_inputs import read_inputs
from jclip.data.preprocess import Preprocess
from jclip.features.gallery_embedding import embed
from jclip.features.source import ModelSource
from jclip.weights.variants import VARIANTS


def ours(folder: Path, photos: list[str]) -> Callable[[], object]:
    """What `jclip embed` does, into a new gallery each time: hashes, rows and files included."""
    source = ModelSource(str(_weights(folder)), "openai")

    def run() -> object:
        shutil.rmtree(folder / "gallery", ignore_errors=True)
        return embed(read_inputs(photos), source, folder / "gallery", "fp32")

    return run


def theirs(folder: Path, photos: list[str], workers: int) -> Callable[[], object]:
    """transformers' model, the same Pillow steps, photos decoded by a DataLoader's workers; one array saved."""
    import torch
    from sides import torch_clip_model

    model = torch_clip_model(VARIANTS["ViT-B/32"])
    seen = Preprocess()  # Pillow's steps are the same in both

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return len(photos)

        def __getitem__(self, place: int):
            return torch.from_numpy(seen(Image.open(photos[place])))

    def run() -> object:
        loader = torch.utils.data.DataLoader(Photos(), batch_size=64, num_workers=workers)
        with torch.inference_mode():
            parts = [model.get_image_features(pixel_values=batch).pooler_output for batch in loader]
            features = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
        np.save(folder / "features.npy", features.numpy())
        return features

    return run


def _weights(folder: Path) -> Path:
    path = folder / "ViT-B-32.pt"
    if not path.exists():
        from bench.convert import write_random  # not the package of that name

        write_random(path, "ViT-B-32")
    return path
