"""Models of toy size whose dimensions are pairwise different, so that a swapped axis changes a shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from jclip.data.preprocess import Preprocess
from jclip.prompts.vocabularies import VocabularyFile
from jclip.weights.checkpoint import random_arrays, save_checkpoint
from jclip.weights.text_configs import BertConfig
from jclip.weights.variants import (
    CLIPConfig,
    EVAConfig,
    ResNetConfig,
    SigLIPImageConfig,
    SigLIPTextConfig,
    TextConfig,
    ViTConfig,
)

TEXT = TextConfig(width=20, heads=4, layers=3, mlp_width=33, context_length=11, vocab_size=97)
TOY_VIT = CLIPConfig(14, ViTConfig((20, 20), patch_size=5, width=24, layers=2, heads=3, mlp_width=42), TEXT)
TOY_VIT_GELU = CLIPConfig(14, TOY_VIT.vision, TEXT, activation="gelu")
TOY_RESNET = CLIPConfig(14, ResNetConfig((96, 96), width=6, layers=(1, 2, 1, 1), heads=3), TEXT)
SMALL_TEXT = TextConfig(width=32, heads=4, layers=2, mlp_width=40)  # with the whole vocabulary and context
SMALL_VIT = CLIPConfig(24, ViTConfig((32, 32), patch_size=8, width=48, layers=2, heads=3, mlp_width=60), SMALL_TEXT)
SMALL_RESNET = CLIPConfig(24, ResNetConfig((64, 64), width=6, layers=(1, 1, 1, 1), heads=3), SMALL_TEXT)
TOY_LAYER_SCALE = CLIPConfig(14, replace(TOY_VIT.vision, layer_scale=True), replace(TEXT, layer_scale=True), "gelu")
_EVA = EVAConfig((20, 15), patch_size=5, width=48, layers=2, heads=3, mlp_width=42)
TOY_EVAS = {  # the kinds that exist: B and L; E; 8B; 18B
    "eva02": CLIPConfig(14, replace(_EVA, swiglu=True, sub_norm=True, rope=True), TEXT, "gelu"),
    "enormous": CLIPConfig(14, replace(_EVA, post_norm=True), TEXT, "gelu"),
    "8b": CLIPConfig(14, replace(_EVA, rms_norm=True, bias=False), TEXT, "gelu"),
    "18b": CLIPConfig(14, replace(_EVA, post_norm=True, rms_norm=True, bias=False), TEXT, "gelu"),
}
TOY_SIGLIP = CLIPConfig(
    24,
    SigLIPImageConfig((20, 15), patch_size=5, width=24, layers=2, heads=3, mlp_width=42),
    SigLIPTextConfig(width=20, heads=4, layers=3, mlp_width=33, context_length=11, vocab_size=97),
    "gelu_tanh",
    1e-6,
    sigmoid=True,
)
SMALL_SIGLIP = CLIPConfig(  # reads real photos, and texts by `letter_words`
    48,
    SigLIPImageConfig((32, 32), patch_size=8, width=48, layers=2, heads=3, mlp_width=60),
    SigLIPTextConfig(width=32, heads=4, layers=2, mlp_width=40, context_length=64, vocab_size=97),
    "gelu_tanh",
    1e-6,
    sigmoid=True,
)
TOY_BERT = CLIPConfig(
    14,
    TOY_VIT.vision,
    BertConfig(width=20, heads=5, layers=3, mlp_width=33, context_length=11, vocab_size=97, positions=13),
)
SMALL_BERT = CLIPConfig(  # reads real photos, and texts by `chinese_words`
    24, SMALL_VIT.vision, BertConfig(width=32, heads=4, layers=2, mlp_width=40, vocab_size=1057, positions=60)
)
TOYS = {"vit": TOY_VIT, "vit_gelu": TOY_VIT_GELU, "resnet": TOY_RESNET}


def letter_words(size: int = 97) -> VocabularyFile:
    """A tokenizer.json of `size` pieces in SentencePiece's form: special ones, then letters."""
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789.,-'" + "".join(map(chr, range(0x4E00, 0x4E00 + size)))
    pieces = ["<pad>", "</s>", "<unk>", *letters][:size]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    end = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    spec = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": space,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"</s>": end}},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)]},
    }  # fmt: skip
    return VocabularyFile("tokenizer.json", json.dumps(spec).encode(), {"clean": "siglip", "pad_token": "</s>"})


def chinese_words(size: int = 97) -> VocabularyFile:
    """A vocab.txt of `size` pieces, BERT's special ones, letters at a word's start and inside, then characters."""
    letters = [c for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for c in (letter, f"##{letter}")]
    common = "一只两三四个红绿蓝圆方形的照片大小在上下张"
    others = [chr(i) for i in range(0x4E00, 0x4E00 + size) if chr(i) not in common]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *common, *letters, ",", ".", "-", *others]
    return VocabularyFile("wordpiece", "\n".join(pieces[:size]).encode(), {})


def words_of(config: CLIPConfig) -> VocabularyFile | None:
    """The vocabulary for a toy; None for CLIP's own."""
    kinds = {"siglip": letter_words, "bert": chinese_words}
    return kinds[config.text.kind](config.text.vocab_size) if config.text and config.text.kind in kinds else None


def shapes_of(config: CLIPConfig) -> dict[str, tuple]:
    from jclip.model.clip import CLIP

    return {k: tuple(v.shape) for k, v in CLIP(config).state_dict().items()}


def toy_file(folder: Path, config: CLIPConfig, seed: int = 0) -> Path:
    """A checkpoint with seeded random weights, written as jclip writes them."""
    kind = "" if config.text is None or config.text.kind != "bert" else "-bert"
    path = folder / f"toy-{config.vision.kind}-{config.activation}{kind}-{seed}.safetensors"
    arrays = random_arrays(shapes_of(config), seed)
    save_checkpoint(path, arrays, config, Preprocess(size=config.vision.image_size), vocabulary=words_of(config))
    return path


def toy_batch(config: CLIPConfig, seed: int = 0, images: int = 3, texts: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (B, 3, H, W) and token ids (T, L) whose end-of-text, the largest id, stands at different places."""
    rng = np.random.default_rng(1000 + seed)
    pixels = rng.standard_normal((images, 3, *config.vision.image_size), dtype=np.float32)
    length, last = config.text.context_length, config.text.vocab_size - 1
    tokens = rng.integers(1, last, (texts, length)).astype(np.int32)
    for row, end in zip(tokens, rng.permutation(np.arange(2, length - 2))[:texts], strict=True):
        row[end], row[end + 1 :] = last, 0
    return pixels, tokens
