"""The model: an image tower, a text tower, and the temperature of their scalar products."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import numpy as np

from jclip import kernels
from jclip.config import Dtype
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError
from jclip.functional.similarity import normalise
from jclip.machine import memory_limit
from jclip.model import padded_mlp
from jclip.model.eva import EVATower
from jclip.model.layers import BatchNorm
from jclip.model.mobile import MobileTower
from jclip.model.perception import PerceptionTower
from jclip.model.resnet import ModifiedResNet
from jclip.model.siglip import SigLIPTower
from jclip.model.text_tower import TextEncoder
from jclip.model.vit import VisionTransformer
from jclip.readers.tensors import LazyTensor
from jclip.runtime import jt
from jclip.weights.checkpoint import Checkpoint, load_strict, save_checkpoint, weight_bytes
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import CLIPConfig

nn = jt.nn
_HALF = {"fp16": "float16", "bf16": "bfloat16"}
PATCHES = ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight")  # kernels that are multiplied as matrices
EVA_MATRICES = tuple(f".{part}.weight" for part in ("qkv", "proj", "fc1", "fc2", "fc1_g", "fc1_x", "head"))
SIGLIP_MATRICES = (".attn_pool.q.weight", ".attn_pool.kv.weight", "text.text_projection.weight")


class CLIP(TextEncoder, nn.Module):
    """Radford et al., 2021, arXiv 2103.00020. Parameters have OpenAI's names; encoders take NumPy arrays as well.

    Freshly made it holds random weights by the paper's initialisation; `load` or `load_strict` fill it.
    """

    def __init__(self, config: CLIPConfig):
        if config.vision:
            self.visual = image_tower(config)
        if config.text:
            self._init_text(config.text, config.embed_dim, config.activation, config.norm_eps)
        if config.vision and config.text:
            self.logit_scale = jt.array([math.log(1 / 0.07)])
            if config.sigmoid:
                self.logit_bias = jt.array([-10.0])
        self.config = config
        self.dtype: Dtype = "fp32"
        self._image_dtype = "float32"
        self.streamed = False  # whether blocks stay on disk, see `jclip.model.streaming`

    def encode_image(
        self,
        images,
        dense: bool | str = False,
        insert: dict | None = None,
        taps: dict | None = None,
        penultimate: bool = False,
    ):
        """(B, 3, H, W) normalised pixels → (B, E), not normalised; with `dense` also (B, N, E), one per patch or cell.

        dense: True or "value" for value-projected tokens (what segmentation and multi-label recipes read), "token" for
        a ViT's ordinary output tokens. insert: deep prompts (ViT only). taps: receives named intermediates. penultimate:
        (B, D) of a ViT's class token after its last norm, before the projection. Raises `ConfigError`.
        """
        if self.config.vision is None:
            raise ConfigError("these weights are a text tower alone: they embed no images")
        x = jt.array(images)
        if tuple(x.shape[1:]) != (3, *self.config.vision.image_size) and not self._takes(tuple(x.shape)):
            H, W = self.config.vision.image_size
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit a model of input (B, 3, {H}, {W})")
        x = self.image_input(x)
        kind = "value" if dense is True else dense or None
        options = {"dense": kind, "taps": taps} | ({} if insert is None else {"insert": insert})
        if penultimate:
            self.config.feature_width(penultimate)  # which not every tower has
            options["penultimate"] = True
        return self.visual(x, **options)

    def _takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the image tower takes photos of any whole number of patches, and these are such."""
        vision = self.config.vision
        if not getattr(vision, "any_shape", False) or len(shape) != 4 or shape[1] != 3:
            return False
        return all(side and side % vision.patch_size == 0 for side in shape[2:])

    def image_input(self, images):
        """Pixels in the dtype that the image tower takes."""
        x = jt.array(images)
        return x if x.dtype == self._image_dtype else x.cast(self._image_dtype)

    def execute(self, images, tokens):
        """Logits both ways, float32: (B, T) per image and (T, B) per text; with the bias of one trained by the sigmoid loss."""
        images = normalise(self.encode_image(images))
        texts = normalise(self.encode_text(tokens))
        per_image = self.logit_scale.float32().exp() * nn.matmul_transpose(images, texts)
        per_image = per_image + self.logit_bias if self.config.sigmoid else per_image
        return per_image, per_image.transpose(0, 1)

    def probabilities(self, images, tokens):
        """(B, 3, H, W), (T, L) → (B, T) float32, by the loss that the weights were trained with.

        Of `config.sigmoid`, that each text belongs to the image, whatever the other texts: σ(s x·t + b); else the texts'
        shares of it: softmax(s x·t). Zhai et al., 2023, arXiv 2303.15343; Radford et al., 2021.
        """
        per_image, _ = self(images, tokens)
        return per_image.sigmoid() if self.config.sigmoid else nn.softmax(per_image, dim=1)

    def to(self, dtype: Dtype) -> CLIP:
        """The model's weights in `dtype`; norms, statistics, the logit scale and its bias stay float32.

        On the CPU bf16 is for inference: what linear maps and convolutions multiply is bfloat16, all else float32. So
        is int8: linear maps but the first multiply 8 bits, see `jclip.kernels.int8`; the first and convolutions as in bf16.
        Raises `ConfigError` for what the device does not compute.
        """
        if dtype not in ("fp32", "int8", *_HALF):
            raise ConfigError(f"dtype must be one of fp32, fp16, bf16, int8, got {dtype!r}")
        if dtype == self.dtype:
            return self
        on_cpu = dtype != "fp32" and not jt.flags.use_cuda
        if dtype == "int8" and not on_cpu:
            raise ConfigError("dtype int8 on a GPU: its products are made for CPUs; use bf16 or fp16")
        if on_cpu and dtype != "int8" and (reason := kernels.why_no_half(dtype)):
            raise ConfigError(f"dtype {dtype} on the CPU: {reason}; use fp32")
        if on_cpu:
            self._round_matrices(dtype)
        else:
            self._cast(_HALF.get(dtype, "float32"))
        self.dtype = dtype
        return self

    def _cast(self, name: str) -> None:
        """All but norms, statistics and the logit scale, and from now on the images, to one Jittor dtype."""
        params = self.state_dict()
        for key, value in self.full_weights().items():
            if not keeps_float32(key):
                params[key].update(value.cast(name))
        self._image_dtype = name

    def _round_matrices(self, dtype: Dtype) -> None:
        """What linear maps and convolutions multiply, to the CPU's bfloat16, or with int8 to integers where it has one
        row per output; the patches' kernel and convolutions then to bfloat16 where the CPU computes in it."""
        params, keeps_wide = self.state_dict(), dtype == "int8" and bool(kernels.why_no_half("bf16"))
        weights = self.full_weights()
        for key, value in (padded_mlp.padded(weights) if dtype == "int8" else weights).items():
            if not is_multiplied(key):
                if tuple(params[key].shape) != tuple(
                    value.shape
                ):  # the bias of an MLP that is made wider, or is no more
                    params[key].update(value)
                continue
            if dtype == "int8" and value.ndim == 2:
                params[key].update(kernels.to_int8(value))
            elif keeps_wide:
                params[key].update(value)
            else:
                is_kernel = value.ndim == 4 and not (key in PATCHES and hasattr(self.config.vision, "patch_size"))
                matrix = value if is_kernel else value.reshape((value.shape[0], -1))
                params[key].update(kernels.to_half(matrix, pack=not is_kernel))

    def full_weights(self) -> dict[str, jt.Var]:
        """float32 parameters and statistics by name, in OpenAI's shapes, whatever the model computes with."""
        weights = {}
        for key, value in self.state_dict().items():
            value = kernels.unpacked(value) if is_multiplied(key) and value.ndim != 4 else value.float32()
            weights[key] = value
        for key in PATCHES:
            if key in weights and weights[key].ndim == 2:
                patch = self.config.vision.patch_size
                weights[key] = weights[key].reshape((-1, 3, patch, patch))
        if self.dtype != "int8":
            return weights
        shapes = parameter_shapes(self.config)
        return {key: padded_mlp.cut(value, shapes[key]) for key, value in weights.items()}


def image_tower(config: CLIPConfig) -> nn.Module:
    """The image tower of the kind that `config` names."""
    return IMAGE_TOWERS[config.vision.kind](config)


IMAGE_TOWERS: dict[str, Callable[[CLIPConfig], nn.Module]] = {
    "vit": lambda c: VisionTransformer(c.vision, c.embed_dim, c.activation, c.norm_eps),
    "resnet": lambda c: ModifiedResNet(c.vision, c.embed_dim),
    "eva": lambda c: EVATower(c.vision, c.embed_dim),
    "pe": lambda c: PerceptionTower(c.vision, c.embed_dim, c.activation, c.norm_eps),
    "mobile": lambda c: MobileTower(c.vision, c.embed_dim, c.activation),
    "siglip": lambda c: SigLIPTower(c.vision),
}


def keeps_float32(key: str) -> bool:
    """Whether the parameter of that name stays float32 in a half-precision model."""
    parts = key.split(".")
    norms = ("ln_", "bn", "norm", "layernorm")
    of_norms = any(p.startswith(norms) for p in parts) or ".downsample.1." in key
    return of_norms or key in ("logit_scale", "logit_bias")


def is_multiplied(key: str) -> bool:
    """Whether the parameter of that name is the matrix of a linear map or a convolution's kernel."""
    kernel = fnmatchcase(key, "*.conv?.weight") or key.endswith(".downsample.0.weight")
    matrices = ("_proj_weight", "_proj.weight", ".c_fc.weight", *EVA_MATRICES, *SIGLIP_MATRICES)
    return kernel or key.endswith(matrices)


@contextlib.contextmanager
def inference(model: CLIP) -> Iterator[None]:
    """No gradients, running statistics for the block; afterwards each module is in the mode it was in.

    Unlike `model.eval()`, which freezes all parameters for good.
    """
    modes = [(module, module.is_training()) for module in model.modules()]
    try:
        for module, _ in modes:
            module.is_train = False
        with jt.no_grad():
            yield
    finally:
        for module, training in modes:
            module.is_train = training


def training_mode(model: CLIP, moving: Iterable[str] = ("*",)) -> None:
    """Batch norms whose weight's name matches one of `moving` use and move the statistics of each batch; others don't."""
    moving = list(moving)
    for name, module in model.named_modules():
        module.is_train = any(fnmatchcase(f"{name}.weight", pattern) for pattern in moving)


@contextlib.contextmanager
def held_statistics(model: CLIP) -> Iterator[None]:
    """In the block batch norms use the statistics that they would, and move none."""
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


def clamp_logit_scale(model: CLIP) -> None:
    """Keeps exp(logit scale) between 1 and 100, as the paper does after each step; SigLIP, whose own is above, does not."""
    if model.config.sigmoid:
        return
    trained = not model.logit_scale.is_stop_grad()
    with jt.no_grad():
        model.logit_scale.update(jt.clamp(model.logit_scale, 0.0, math.log(100.0)))
    if trained:
        model.logit_scale.start_grad()


def running_statistics(model: CLIP) -> dict[str, jt.Var]:
    """What batch norms move besides the parameters, by name."""
    return {k: v for k, v in model.state_dict().items() if "running_" in k}


def put_arrays(model: CLIP, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces some of the model's parameters and statistics, by name."""
    params = model.state_dict()
    for name, array in arrays.items():
        params[name].update(jt.array(array))


def save_model(
    path: str | os.PathLike, model: CLIP, preprocess: Preprocess, half: bool = False, **metadata: str
) -> None:
    """Writes the model as it is, with all that `load` needs; `half` stores float16."""
    kind = "float16" if half else "float32"

    def stored(var: jt.Var) -> LazyTensor:
        return LazyTensor(tuple(var.shape), kind, lambda: var.numpy().astype(kind, copy=False))

    weights = model.full_weights()
    scale = {"logit_scale": weights["logit_scale"].numpy().astype(kind)}
    tensors = {k: stored(v) for k, v in weights.items()} | scale
    save_checkpoint(path, tensors, model.config, preprocess, metadata, model.vocabulary)


def parameter_count(model) -> int:
    """Number of weights, running statistics not counted."""
    return sum(int(np.prod(p.shape)) for k, p in model.state_dict().items() if "running_" not in k)


def build(checkpoint: Checkpoint, dtype: Dtype = "fp32") -> CLIP:
    """The model that `checkpoint` holds, in evaluation mode. Raises `MisfitError` when keys or shapes don't fit."""
    memory_limit.require_model(weight_bytes(checkpoint), str(checkpoint.path))
    model = CLIP(checkpoint.config)
    model.vocabulary = checkpoint.vocabulary
    load_strict(model, checkpoint.tensors, str(checkpoint.path))
    model.eval()
    model.to(dtype)
    jt.sync_all()  # weights that were never computed would be fused into the first operators that read them
    return model
