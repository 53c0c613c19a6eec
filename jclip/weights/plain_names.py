"""A model's own tensors out of what training scripts save: one set of several, without wrappers, out of whole modules.

`state_dict`, `module.`, `_orig_mod.` and their like are recognised in any order and nesting; other names are stated:
`weights_key` chooses one of several sets (`state_dict_ema`), `prefix` is what the model's names begin with there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from jclip.errors import CheckpointError, notice, printable, quoted
from jclip.readers import LazyTensor
from jclip.weights.families import Stated
from jclip.weights.geometric_weights import with_plain_weights
from jclip.weights.layouts import from_long_clip

SCALARS = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's own files carry them
_WRAPPERS = ("state_dict.", "model.", "model_state_dict.", "module.", "_orig_mod.", "clip_model.")
_CLASSIFIERS = "image_encoder.model."  # where a model lies in an image classifier; MobileCLIP's own names begin so, too
_INSERTED = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ROOTS = (  # what a model's own names begin with, in every layout that is read
    "visual.", "token_embedding.", "transformer.", "text.", "vision_model.", "text_model.", "visual_projection.",
    "image_encoder.", "text_encoder.",
)  # fmt: skip
_MODULE = re.compile(r"(?P<above>(?:.*?\.)??)(?P<path>(?:_modules\.[^.]+\.)*)_(?:parameters|buffers)\.(?P<name>[^.]+)")
_AVERAGED = re.compile(r"(?:^|_)(?:ema|swa|averaged|teacher)(?:_|$)")
_HEAD = re.compile(
    r"(?P<above>(?:\w+\.)*?)(?P<name>head|fc|classifier|classification_head|cls_head|linear_head|linear)\.(?P<kind>weight|bias)"
)


def plain_tensors(
    tensors: Mapping[str, LazyTensor], place: object, stated: Stated | None = None
) -> dict[str, LazyTensor]:
    """Return the model's floating-point tensors under their own names, without counters that Jittor does not use, and
    with weights in geometric parametrisation as plain ones, and Long-CLIP's two tables of positions as one.

    place: the file, for messages. A classifier and averaged weights beside the model are left out and named on stderr,
    once. Raises `CheckpointError` for a stated name that the file lacks, where two names become one, and for quantised
    weights.
    """
    stated = stated or Stated()
    found = plain_names(tensors, stated)
    _refuse_quantised(found, place)
    kept = {k: t for k, t in found.items() if k not in SCALARS and t.is_float and not k.endswith("num_batches_tracked")}
    if any(name.startswith(_ROOTS) for name in kept):
        heads = classifier_heads(tensors, stated)
        for line in _beside(tensors, stated, heads):
            say_once(f"{place} {line}")
        beside = {name for head in heads.values() for name in head}
        kept = {k: t for k, t in kept.items() if k not in beside}
    return with_plain_weights(from_long_clip.joined(kept))


def _refuse_quantised(tensors: Mapping[str, LazyTensor], place: object) -> None:
    """Raise `CheckpointError` for a model's matrices of 8-bit integers, whose scales each library keeps in its own way."""
    short = [
        k for k, t in tensors.items() if t.dtype in ("int8", "uint8") and len(t.shape) > 1 and k.startswith(_ROOTS)
    ]
    if short:
        raise CheckpointError(
            f"{place} holds {len(short)} weights of 8-bit integers ({short[0]}, …): they must be floats: save the model "
            "unquantised, in fp32, fp16 or bf16; --dtype int8 computes with 8 bits"
        )


def plain_names(tensors: Mapping[str, LazyTensor], stated: Stated | None = None) -> dict[str, LazyTensor]:
    """Return all tensors of the model's set under names without wrappers. Anything beside a wrapper's names (an
    optimiser's moments) is left out; where a model's own names are found, all names are kept as they are.

    Raises `CheckpointError` for a stated name that the file lacks, and where two names become one.
    """
    stated = stated or Stated()
    chosen = _of_key(_of_modules(tensors), stated.weights_key)
    if stated.prefix is not None:
        chosen = _below(chosen, stated.prefix)
    plain: dict[str, LazyTensor] = {}
    for name, tensor in _unwrapped(chosen, _ROOTS).items():
        own = _INSERTED.sub("", name)
        if own in plain:
            raise CheckpointError(f"{own} must appear once in a file, but {name} names the same tensor")
        plain[own] = tensor
    return plain


def prefix_hint(names: Iterable[str]) -> str:
    """Return the option that would find a model in names that hold one below a foreign prefix, or an empty text."""
    roots = "|".join(re.escape(root) for root in _ROOTS[:2] + _ROOTS[4:6])
    found = Counter(m[1] for name in names if (m := re.match(rf"((?:\w+\.){{1,6}})(?:{roots})", name)))
    if not found:
        return ""
    return f"; its names begin with {found.most_common(1)[0][0]}, which --prefix (prefix=) takes away"


def classifier_heads(
    tensors: Mapping[str, LazyTensor], stated: Stated | None = None
) -> dict[str, dict[str, LazyTensor]]:
    """Return the classifiers beside the towers, by their names without wrappers: `{"head": {"head.weight": (C, D),
    "head.bias": (C,)}}`."""
    chosen = _of_key(_of_modules(tensors), (stated or Stated()).weights_key)
    found: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in _unwrapped(chosen, (*_ROOTS, "head.", "fc.", "classifier.", "classification_head.")).items():
        m = _HEAD.fullmatch(_INSERTED.sub("", name))
        if m is None or any(f".{root}" in f".{m['above']}" for root in _ROOTS):
            continue
        if len(tensor.shape) == (2 if m["kind"] == "weight" else 1) and tensor.is_float:
            found.setdefault(f"{m['above']}{m['name']}", {})[m[0]] = tensor
    return {name: head for name, head in found.items() if f"{name}.weight" in head}


def _of_modules(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return names as a state dict has them, of modules that were pickled whole; their other tensors are left out."""
    if not any("_parameters." in name for name in tensors):
        return dict(tensors)
    made = {}
    for name, tensor in tensors.items():
        m = _MODULE.fullmatch(name)
        if m and not (m["name"] == "attn_mask" and "_buffers." in name):
            made[f"{m['above']}{m['path'].replace('_modules.', '')}{m['name']}"] = tensor
        elif m is None and "_modules." not in name:
            made[name] = tensor
    return made


def _of_key(tensors: dict[str, LazyTensor], key: str | None) -> dict[str, LazyTensor]:
    """Return one set of several, its key taken away. Raises `CheckpointError` naming the others."""
    if key is None:
        return tensors
    start = f"{key.removesuffix('.')}."
    if found := {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}:
        return found
    keys = sorted({name.partition(".")[0] for name in tensors if "." in name})
    raise CheckpointError(f"--weights-key (weights_key=) must name one of {_shown(keys)}, got {quoted(key)}")


def _below(tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return the tensors whose names begin with `prefix`, which is taken away, below any known wrappers. Raises
    `CheckpointError`."""
    left = tensors
    while left:
        for start in (f"{prefix.removesuffix('.')}.", prefix):
            if found := {k.removeprefix(start): t for k, t in left.items() if k.startswith(start) and k != start}:
                return found
        left = _without(left, _wrapper_of(left))
    starts = sorted({".".join(name.split(".")[:2]) for name in tensors})
    raise CheckpointError(f"--prefix (prefix=) must be what names begin with, {_shown(starts)}, got {quoted(prefix)}")


def _unwrapped(tensors: dict[str, LazyTensor], roots: tuple[str, ...]) -> dict[str, LazyTensor]:
    """Return what lies below known wrappers, until names begin with a root or no wrapper is left."""
    if any(name.startswith(f"{_CLASSIFIERS}{_ROOTS[0]}") for name in tensors):
        return _without(tensors, _CLASSIFIERS) | {k: t for k, t in tensors.items() if not k.startswith(_CLASSIFIERS)}
    while not any(name.startswith(roots) for name in tensors):
        wrapper = _wrapper_of(tensors)
        if wrapper is None:
            break
        tensors = _without(tensors, wrapper)
    return tensors


def _wrapper_of(tensors: Mapping[str, LazyTensor]) -> str | None:
    return next((w for w in _WRAPPERS if any(name.startswith(w) for name in tensors)), None)


def _without(tensors: Mapping[str, LazyTensor], wrapper: str | None) -> dict[str, LazyTensor]:
    return {k.removeprefix(wrapper): t for k, t in tensors.items() if k.startswith(wrapper)} if wrapper else {}


def _beside(
    tensors: Mapping[str, LazyTensor], stated: Stated, heads: Mapping[str, Mapping[str, LazyTensor]]
) -> Iterator[str]:
    """Yield what else a file holds that somebody may be looking for."""
    keys = sorted({name.partition(".")[0] for name in tensors if "." in name})
    averaged = [key for key in keys if _AVERAGED.search(key)]
    if averaged and len(keys) > len(averaged) and stated.weights_key is None and stated.prefix is None:
        option = f"--weights-key (weights_key=) {printable(averaged[0], 60)}"
        yield f"also holds averaged weights, not read here: {option} takes them"
    for name, head in heads.items():
        shown = printable(name, 60)
        yield f"also holds a classifier, {shown} {head[f'{name}.weight'].shape}, which python convert --head {shown} keeps"


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, in one process once."""
    notice(line)


def _shown(names: list[str]) -> str:
    return printable(", ".join(names[:6]) + (", …" if len(names) > 6 else ""), 300) or "nothing"
