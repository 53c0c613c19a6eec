"""Text towers as data: one frozen dataclass for each kind, and the table of kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from jclip.errors import ConfigError
from jclip.readers.schema import FLAG, NOTHING, Condition, either, obey, one_of
from jclip.weights.tower_sizes import (
    BLOCKS,
    CONTEXT,
    EPSILON,
    HEADS,
    HIDDEN,
    TOKEN,
    VOCABULARY,
    WIDTH,
    Activation,
    check_heads,
    tower_from_table,
    without_defaults,
)

SIZES: dict[str, Condition] = {
    "width": WIDTH, "heads": HEADS, "layers": BLOCKS, "mlp_width": HIDDEN, "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
}  # fmt: skip
ACTIVATION = one_of(*get_args(Activation))


@dataclass(frozen=True)
class TextConfig:
    """CLIP's: a text transformer, causal but for MobileCLIP 2's L, read at the end-of-text token."""

    width: int
    heads: int
    layers: int
    mlp_width: int
    context_length: int = 77
    vocab_size: int = 49408
    layer_scale: bool = False
    end: int | None = None  # id of end-of-text where it is not the highest id of a text
    causal: bool = True  # a token sees those before it and itself; else all, padding as well
    kind: str = "clip"

    def __post_init__(self) -> None:
        rules = {**SIZES, "layer_scale": FLAG, "end": either(TOKEN, NOTHING), "causal": FLAG, "kind": one_of("clip")}
        obey(vars(self), rules, "text")
        check_heads(self.heads, self.width, "text")
        if self.end is not None and self.end >= self.vocab_size:
            raise ConfigError(f"text.end must be below vocab_size {self.vocab_size}, got {self.end}")


@dataclass(frozen=True)
class BertConfig:
    """BERT as Chinese-CLIP has it: attention to all tokens but padding, norms after each branch, read at the first token.

    Devlin et al., 2018, arXiv 1810.04805; Yang et al., 2022, arXiv 2211.01335. It has an activation and an epsilon of
    its own, beside those of the image tower.
    """

    width: int
    heads: int
    layers: int
    mlp_width: int
    context_length: int = 52
    vocab_size: int = 21128
    positions: int = 512  # rows of the table of positions, of which a text uses the first
    types: int = 2  # rows of the table of token types, of which a text uses the first
    pad: int = 0  # id of padding, which nothing attends to
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    kind: str = "bert"

    def __post_init__(self) -> None:
        rules = {"positions": CONTEXT, "types": HEADS, "pad": TOKEN, "activation": ACTIVATION, "norm_eps": EPSILON}
        obey(vars(self), {**SIZES, **rules, "kind": one_of("bert")}, "text")
        check_heads(self.heads, self.width, "text")
        if self.context_length > self.positions:
            raise ConfigError(
                f"text.context_length must be at most positions {self.positions}, got {self.context_length}"
            )
        if self.pad >= self.vocab_size:
            raise ConfigError(f"text.pad must be below vocab_size {self.vocab_size}, got {self.pad}")


@dataclass(frozen=True)
class SigLIPTextConfig:
    """SigLIP's: attention to all tokens, padding too, read at the last one; so a text is never cut.

    Zhai et al., 2023, arXiv 2303.15343. It has an activation and an epsilon of its own, as SigLIP's image tower has.
    """

    width: int
    heads: int
    layers: int
    mlp_width: int
    context_length: int = 64
    vocab_size: int = 32000
    projection: bool = True  # a linear map to the embedding; SigLIP's multilingual SO400M has none
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    kind: str = "siglip"

    layer_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rules = {"projection": FLAG, "activation": ACTIVATION, "norm_eps": EPSILON, "kind": one_of("siglip")}
        obey(vars(self), {**SIZES, **rules}, "text")
        check_heads(self.heads, self.width, "text")


AnyText = TextConfig | BertConfig | SigLIPTextConfig
TEXT_KINDS: dict[str, type] = {"clip": TextConfig, "bert": BertConfig, "siglip": SigLIPTextConfig}
TEXT_NAMES = {  # what messages call them
    "clip": "CLIP's text tower",
    "bert": "a BERT, Chinese-CLIP's text tower",
    "siglip": "SigLIP's text tower",
}
_NEWER = {"end": None, "causal": True, "kind": "clip"}  # keys of `TextConfig` that older files lack


def text_from_table(values: Any) -> AnyText:
    """Return the text tower of a table, of the kind that it names; CLIP's without one. Raises `ConfigError`."""
    obey(values, {"kind": one_of(*TEXT_KINDS)}, "text")
    return tower_from_table(TEXT_KINDS[values.get("kind", "clip")], values, "text")


def text_to_table(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a text tower as files hold them; CLIP's without the keys that older ones lack."""
    return without_defaults(values, _NEWER) if values["kind"] == "clip" else values
