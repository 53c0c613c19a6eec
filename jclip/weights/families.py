"""What weights do not show: activation, resizing and normalisation, by family, and what a user states."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jclip.data import preprocess as preprocessing
from jclip.errors import CheckpointError, UnknownName, UnsaidError
from jclip.readers.schema import SIDE, obey, several
from jclip.weights.tower_sizes import WIDTH, Activation

NORMALISATIONS = ("openai", "imagenet", "half", "unit")  # see `jclip.data.preprocess.NORMALISATIONS`


@dataclass(frozen=True)
class Family:
    """One lineage of weights."""

    who: str
    activation: Activation
    normalisation: str = "openai"
    resize: str = "shortest"
    interpolation: str = "bicubic"
    causal: bool = True  # whether a text's tokens see those before them alone


FAMILIES = {
    "openai": Family("OpenAI's nine; the Jittor challenge's", "quickgelu"),
    "openclip": Family("LAION-2B, DataComp, CommonPool; LAION-400M but for ViT-B/32", "gelu"),
    "openclip-quickgelu": Family("open_clip's -quickgelu: LAION-400M ViT-B/32, YFCC and CC12M ResNets", "quickgelu"),
    "laion2b-vit-l14": Family("laion2b_s32b_b82k of ViT-L/14", "gelu", "half"),
    "metaclip": Family("MetaCLIP 400M and 2.5B", "quickgelu"),
    "metaclip-altogether": Family("MetaCLIP 1.2 ViT-H/14", "gelu"),
    "dfn2b": Family("DFN2B ViT-B/16 and ViT-L/14", "quickgelu"),
    "dfn2b-39b": Family("DFN2B ViT-L/14 of 39B samples", "gelu"),
    "dfn5b": Family("DFN5B ViT-H/14, 224 and 378", "quickgelu", resize="squash"),
    "chinese-clip": Family(
        "Chinese-CLIP: the authors' files, ModelScope's and Hugging Face's", "quickgelu", resize="squash"
    ),
    "long-clip": Family("Long-CLIP B/16 and L/14: texts of 248 tokens", "quickgelu"),
    "eva": Family("EVA02-CLIP B, L, E; EVA-CLIP 8B and 18B", "gelu"),
    "metaclip2": Family("MetaCLIP 2 worldwide ViT-H/14 and ViT-bigG/14 without quickgelu in their names", "gelu"),
    "metaclip2-378": Family("the same at 378 pixels", "gelu", resize="squash"),
    "metaclip2-quickgelu": Family("MetaCLIP 2 worldwide with quickgelu in their names", "quickgelu"),
    "pe": Family("PE-Core", "gelu", "half", "squash", "bilinear"),
    "mobileclip": Family("MobileCLIP B and MobileCLIP 2 B", "gelu", "unit", interpolation="bilinear"),
    "mobileclip2-l14": Family("MobileCLIP 2 L/14", "gelu", causal=False),
    "siglip": Family("SigLIP and SigLIP 2", "gelu_tanh", "half", resize="squash"),
}

NOT_READ = {  # recognised, refused by name
    "coca": "CoCa: a captioner with a text decoder, not two towers",
    "clipa": "CLIPA: no norm before the blocks, average pool and a BERT vocabulary",
    "eva01": "EVA01-CLIP, which EVA02-CLIP of the same sizes supersedes",
    "fastvit": "MobileCLIP of a FastViT, sizes S0 to S4 (its B and L/14 are read)",
    "pe-tokens": "a PE-Lang or PE-Spatial image tower: it has neither pool nor projection to texts; PE-Core has both",
    "foreign-tower": "a tower of another library",
}


def refused(family: str, place: object, detail: str = "") -> CheckpointError:
    """Return the error that names a family which is recognised but not supported."""
    return CheckpointError(f"{place} is {NOT_READ[family]}{f' ({detail})' if detail else ''}: jclip does not read it")


@dataclass(frozen=True)
class Stated:
    """What a user states about a file that does not say it itself. Each value overrides the family's."""

    family: str | None = None
    activation: Activation | None = None
    normalisation: str | None = None
    resize: str | None = None
    head_width: int | None = None  # of the image tower
    post_norm: bool | None = None  # of EVA's blocks
    image_size: tuple[int, int] | None = None  # H, W, where a table of positions gives only their product
    texts: str | None = None  # which of FG-CLIP 2's ways to read texts
    weights_key: str | None = None  # one set of several in a file, see `jclip.weights.plain_names`
    prefix: str | None = None  # what the model's names begin with in it

    def __post_init__(self) -> None:
        if self.family not in (None, *FAMILIES):
            raise UnknownName("family", self.family, FAMILIES)
        if self.normalisation not in (None, *NORMALISATIONS):
            raise UnknownName("normalisation", self.normalisation, NORMALISATIONS)
        given = {key: value for key, value in vars(self).items() if value is not None}
        obey(given, {"head_width": WIDTH, "image_size": several(SIDE, 2)})

    def refuse_names(self, place: object) -> None:
        """Raise `CheckpointError` where names are stated for a file that jclip wrote, which has its own."""
        if self.weights_key is not None or self.prefix is not None:
            raise CheckpointError(
                f"{place} was written by jclip and has its own names: leave --prefix and --weights-key out"
            )

    @property
    def anything(self) -> bool:
        """Whether any activation or preprocessing is stated."""
        return any((self.family, self.activation, self.normalisation, self.resize))

    def believing(self, family: str | None) -> Stated:
        """Return the same with the family that the file itself shows. Raises `CheckpointError` when they contradict
        each other."""
        if family and self.family not in (None, family):
            ours, theirs = FAMILIES[family], FAMILIES[self.family]
            if replace(ours, who="") != replace(theirs, who=""):
                raise CheckpointError(
                    f"the file carries the marks of {family}, family {self.family!r} contradicts them"
                )
        return replace(self, family=family or self.family)

    def stated_activation(self, place: object) -> Activation:
        """Return the activation. Raises `UnsaidError` with the choices where neither family nor activation is known."""
        if self.activation:
            return self.activation
        if self.family:
            return FAMILIES[self.family].activation
        choices = "; ".join(f"{name} ({family.who})" for name, family in FAMILIES.items())
        raise UnsaidError(
            f"{place} does not say which activation and normalisation it was trained with, and the weights don't show "
            f"it: pass family= (--family), one of {choices}; or --activation, --normalisation and --resize"
        )

    @property
    def causal(self) -> bool:
        """Whether a token of a text sees those before it alone."""
        return FAMILIES[self.family or "openai"].causal

    def preprocess(self, size: tuple[int, int]) -> preprocessing.Preprocess:
        """Return the preprocessing for this input size; OpenAI's where nothing is known."""
        family = FAMILIES[self.family or "openai"]
        mean, std = preprocessing.NORMALISATIONS[self.normalisation or family.normalisation]
        resize = self.resize or family.resize
        return preprocessing.Preprocess(size, resize=resize, interpolation=family.interpolation, mean=mean, std=std)
