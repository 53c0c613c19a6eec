"""`--check`: a fixed input through jclip and through the family's reference in torch, which reads SRC by its own means.

Hugging Face's folders are loaded by transformers, the rest by open_clip (Jittor's `.pkl` as a state dict of ours), EVA's
original files by timm's own filter: their image tower, as the text tower has no reader of its own. EVA-CLIP 8B and 18B
have no package that could be asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convert import to_torch
from jclip.errors import DifferenceError, SetupError
from jclip.readers import read_weights
from jclip.readers.schema import read_table
from jclip.weights.checkpoint import Checkpoint
from jclip.weights.identify import Source, described_by
from jclip.weights.layouts import (
    from_chinese_clip,
    from_huggingface,
    from_long_clip,
    from_open_clip,
    from_siglip,
    from_timm,
)
from jclip.weights.mobile_configs import MobileConfig, as_timm
from jclip.weights.variants import CLIPConfig

TOLERANCE = 1e-4  # of the largest number among the features
Encoders = dict[str, Callable[[np.ndarray], np.ndarray]]


def against_reference(source: Source) -> list[str]:
    """One line for each tower. Raises `DifferenceError` above the tolerance, `SetupError` where no reference is installed."""
    config = source.checkpoint.config
    pixels, tokens = fixed_input(config)
    lines = []
    if isinstance(config.vision, MobileConfig) and config.vision != as_timm(config.vision):
        lines = ["check: as open_clip computes these weights, which Apple's own code does with a pixel around photos"]
        config = replace(config, vision=as_timm(config.vision))
        source = replace(source, checkpoint=replace(source.checkpoint, config=config))
    ours = _ours(source.checkpoint)
    for kind, encode in _reference(source).items():
        batch = pixels if kind == "image" else tokens
        wanted, got = encode(batch), ours[kind](batch)
        largest = float(np.abs(wanted).max())
        difference, allowed = float(np.abs(got - wanted).max()), TOLERANCE * largest
        lines.append(f"check: {kind} features differ by {difference:.2e}, {allowed:.2e} is allowed")
        if not difference <= allowed:
            raise DifferenceError(f"{source.checkpoint.path}: {lines[-1]}: these weights compute something else here")
    return lines


def fixed_input(config: CLIPConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (2, 3, H, W) and ids (3, L), whose ends of text stand at different places; always the same."""
    rng = np.random.default_rng(0)
    size = config.vision.image_size if config.vision else (1, 1)
    pixels = rng.standard_normal((2, 3, *size), dtype=np.float32)
    if config.text is None:
        return pixels, np.zeros((1, 1), np.int32)
    length, end = config.text.context_length, config.text.vocab_size - 1
    end = end if getattr(config.text, "end", None) is None else config.text.end
    tokens = rng.integers(1, config.text.vocab_size - 1, (3, length)).astype(np.int32)
    tokens[tokens == end] = 1
    for row, at in zip(tokens, (2, length // 2, length - 1), strict=True):
        row[at], row[at + 1 :] = end, getattr(config.text, "pad", 0)
    return pixels, tokens


def _ours(checkpoint: Checkpoint) -> Encoders:
    from jclip.model.clip import build, inference

    model = build(checkpoint)

    def run(encode: Callable) -> Callable[[np.ndarray], np.ndarray]:
        def encoded(batch: np.ndarray) -> np.ndarray:
            with inference(model):
                return encode(batch).numpy()

        return encoded

    return {"image": run(model.encode_image), "text": run(model.encode_text)}


def _reference(source: Source) -> Encoders:
    if source.layout == "Hugging Face CLIPModel folder":
        return _transformers(source.checkpoint)
    if source.layout == f"{from_chinese_clip.HUGGING_FACE} folder":
        return _chinese_clip(source.checkpoint)
    if source.layout in (f"{from_siglip.HUGGING_FACE} folder", f"{from_siglip.NAFLEX} folder"):
        return _siglip(source.checkpoint)
    if source.layout == "EVA-CLIP original":
        return _timm(source.checkpoint)
    if from_open_clip.described(source.checkpoint.config, source.checkpoint.preprocess):
        return _open_clip(source)
    raise SetupError(
        "--check must have a reference, got a model that no package computes: EVA-CLIP 8B or 18B, FG-CLIP 2, Chinese-CLIP "
        "without config.json, or sizes unknown to open_clip"
    )


def _imported(module: str, *names: str) -> list[Any]:
    """Attributes of a reference's module. Raises `SetupError` where it is not installed or doesn't fit its torch."""
    misfit = _misfit_of_torchvision()
    hidden = (
        {"torchvision": None} if misfit and module == "transformers" else {}
    )  # its towers need none, but it imports one
    try:
        with _modules(hidden):
            found = importlib.import_module(module)
            return [getattr(found, name) for name in names]
    except (ImportError, RuntimeError) as e:
        if misfit and not hidden:
            raise SetupError(f"--check by {module.partition('.')[0]} must have {misfit}") from e
        raise SetupError(f"--check can't import {module} ({_first_cause(e)}): pip install 'jclip[parity]'") from e


def _misfit_of_torchvision() -> str:
    """What is wrong with a torchvision that was built for another torch than the one here; "" where it fits or is absent."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return ""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as e:
        built, torch = (importlib.metadata.version(name) for name in ("torchvision", "torch"))
        return (
            f"a torchvision that fits torch, got torchvision {built} of another build than torch {torch} "
            f"({_first_cause(e)}): pip install --force-reinstall torchvision from the index that torch came from"
        )
    return ""


@contextmanager
def _modules(replaced: Mapping[str, Any]) -> Iterator[None]:
    """Entries of `sys.modules`, replaced inside; None makes a package one that is not installed."""
    before = {name: sys.modules[name] for name in replaced if name in sys.modules}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _first_cause(error: BaseException) -> str:
    """Its text, of at most 120 characters: transformers says that a class could not be imported, and not why."""
    while error.__cause__:
        error = error.__cause__
    reason = " ".join(str(error).split())
    return reason if len(reason) <= 120 else f"{reason[:119]}…"


def _transformers(checkpoint: Checkpoint) -> Encoders:
    folder, config = checkpoint.path, checkpoint.config
    kind = str(read_table(folder / "config.json").get("model_type") or "")
    family = "MetaClip2" if kind.startswith(from_huggingface.WORLDWIDE) else "CLIP"
    names = ("Model", "VisionModelWithProjection", "TextModelWithProjection")
    both, image, text = _imported("transformers", *(f"{family}{name}" for name in names))
    if config.vision and config.text:
        model = _loaded(both, folder)
        fields = {"image": model.get_image_features, "text": model.get_text_features}
        return {kind: _called(encode, "pooler_output") for kind, encode in fields.items()}
    if config.vision:
        return {"image": _called(_loaded(image, folder), "image_embeds")}
    return {"text": _called(_loaded(text, folder), "text_embeds")}


def _chinese_clip(checkpoint: Checkpoint) -> Encoders:
    (kind,) = _imported("transformers", "ChineseCLIPModel")
    model, pad = _loaded(kind, checkpoint.path), checkpoint.config.text.pad

    def texts(ids: Any) -> Any:
        return model.get_text_features(ids, attention_mask=(ids != pad).long())

    return {"image": _called(model.get_image_features, "pooler_output"), "text": _called(texts, "pooler_output")}


def _siglip(checkpoint: Checkpoint) -> Encoders:
    config = checkpoint.config
    if config.vision is not None and config.vision.any_shape:
        return _naflex(checkpoint)
    both, image, text = _imported("transformers", "SiglipModel", "SiglipVisionModel", "SiglipTextModel")
    if config.vision and config.text:
        model = _loaded(both, checkpoint.path)
        fields = {"image": model.get_image_features, "text": model.get_text_features}
    else:
        alone = _loaded(image if config.vision else text, checkpoint.path)
        fields = {"image" if config.vision else "text": alone}
    return {kind: _called(encode, "pooler_output") for kind, encode in fields.items()}


def _naflex(checkpoint: Checkpoint) -> Encoders:
    """SigLIP 2's towers for any proportions, of photos of the positions' own size."""
    import torch

    both, image = _imported("transformers", "Siglip2Model", "Siglip2VisionModel")
    config, patch = checkpoint.config, checkpoint.config.vision.patch_size
    model = _loaded(both if config.text else image, checkpoint.path)

    def photos(pixels: Any) -> Any:
        count, _, height, width = pixels.shape
        rows, columns = height // patch, width // patch
        cells = pixels.reshape(count, 3, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        given = {"pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.long)}
        given |= {"spatial_shapes": torch.tensor([[rows, columns]] * count)}
        encode = model.get_image_features if config.text else model
        return encode(pixel_values=cells.reshape(count, rows * columns, -1), **given)

    texts = {"text": _called(model.get_text_features, "pooler_output")} if config.text else {}
    return {"image": _called(photos, "pooler_output"), **texts}


def _loaded(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, dtype="float32", local_files_only=True).eval()


def _open_clip(source: Source) -> Encoders:
    """open_clip reads SRC itself, in a folder that describes the model where SRC is a bare file."""
    (create,) = _imported("open_clip", "create_model")
    checkpoint = source.checkpoint
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint.path
        if described_by(folder) is None and from_timm.is_timm(checkpoint.config):
            folder = Path(made)
            to_torch.write_open_clip(folder, checkpoint, "float32")
        elif described_by(folder) is None:
            folder, (file,) = Path(made), checkpoint.files
            said = from_open_clip.described(checkpoint.config, checkpoint.preprocess)
            (folder / from_open_clip.CONFIG).write_text(json.dumps(said))
            read, name = read_weights(file), "open_clip_pytorch_model"
            if read.kind == "jittor" or from_long_clip.is_long_clip(read):  # which open_clip does not read
                to_torch.write_state_dict(folder / f"{name}.bin", checkpoint, "float32")
            else:
                ending = "safetensors" if read.kind == "safetensors" else "bin"
                (folder / f"{name}.{ending}").symlink_to(file.absolute())
        model = create(f"local-dir:{folder}").eval().float()
    return {"image": _called(model.encode_image), "text": _called(model.encode_text)}


def _timm(checkpoint: Checkpoint) -> Encoders:
    """The image tower, by timm's own reading of EVA's names."""
    import torch

    (create,), (renamed,) = _imported("timm", "create_model"), _imported("timm.models.eva", "checkpoint_filter_fn")
    said = from_open_clip.described(checkpoint.config, checkpoint.preprocess)
    if said is None:
        raise SetupError("--check must have a reference, got an EVA tower of a size that timm lacks")
    tower = create(said["model_cfg"]["vision_cfg"]["timm_model_name"], num_classes=checkpoint.config.embed_dim)
    saved = torch.load(checkpoint.files[0], map_location="cpu", weights_only=True)
    state = next((saved[k] for k in ("module", "model", "state_dict") if k in saved), saved)
    image = {k.removeprefix("module."): v.float() for k, v in state.items() if "visual." in k}
    tower.load_state_dict(renamed(image, tower))
    return {"image": _called(tower.eval())}


def _called(encode: Callable, field: str = "") -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = torch.tensor(batch)
            result = encode(given.long() if given.dtype == torch.int32 else given)
            return (getattr(result, field, result) if field else result).numpy()

    return run
