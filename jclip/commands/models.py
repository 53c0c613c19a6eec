"""Lists architectures and published weights, and writes seeded random weights for trials without a download."""

from __future__ import annotations

import argparse

from jclip.commands.arguments import Parser, add_shared, nonempty
from jclip.errors import ConfigError, UnknownName, notice, say
from jclip.model import clip
from jclip.prompts import stand_in_vocabularies, vocabularies
from jclip.report import predictions
from jclip.weights import catalogue, checkpoint, families
from jclip.weights.layouts import from_siglip
from jclip.weights.text_configs import AnyText
from jclip.weights.variants import ARCHITECTURES, SHIPPED, VARIANTS, CLIPConfig, ResNetConfig, canonical_name, slug

SAME = {"MobileCLIP2-B": "MobileCLIP-B", "ViT-L-14-336": "ViT-L/14@336px"}  # published names of one architecture


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip models", description=__doc__)
    p.add_argument(
        "--random",
        type=nonempty,
        metavar="NAME",
        help="write the model NAME, of this list or an architecture of --published, with random weights (needs --out)",
    )
    add_shared(p, "--out", ", a .safetensors file")
    add_shared(p, "--seed", " of the weights (default: 0)", default=0)
    p.add_argument(
        "--published", action="store_true", help="list published weights: size, memory, input, language, licence, hubs"
    )
    p.add_argument("--files", action="store_true", help="list the files of published weights with their SHA-256")
    return p


def main(argv: list[str]) -> int:
    """Lists the models, or writes one. Returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    if bool(args.random) != bool(args.out):
        p.error("--random NAME and --out PATH must be given together")
    if args.random:
        write_random(known_name(args.random), args.out, args.seed)
        say(f"written: {args.out} ({args.random}, random weights of seed {args.seed})")
        return 0

    if args.published or args.files:
        tables = [published()] * args.published + [weight_files()] * args.files
        say("\n\n".join("\n".join(table) for table in tables))
        return 0
    rows = [[name, slug(name), *_numbers(config)] for name, config in {**SHIPPED, **VARIANTS}.items()]
    say(predictions.table(["name", "in configs", "input", "embedding", "image tower", "text tower"], rows))
    return 0


def published() -> list[str]:
    """The known sets of weights as a table in Markdown: what they need, what they know, and their names on hubs."""
    lines = [
        "| `architecture/tag` | million parameters | GB in fp32 | input | language | licence | names on hubs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in catalogue.rows():
        millions = f"{int(row.parameters) / 1e6:,.0f}" if row.parameters else ""
        hubs = [f"{prefix}{name}" for prefix, name in (("hf-hub:", row.hub), ("ms:", row.modelscope)) if name]
        cells = [millions, row.memory, row.input, row.language, row.licence, " ".join(hubs)]
        lines.append(f"| {row.architecture}/{row.tag} | {' | '.join(cell or '–' for cell in cells)} |")
    return lines


def weight_files() -> list[str]:
    """Their files as a table in Markdown: a line for each whose hash is known, else one for the repository."""
    lines = ["| `architecture/tag` | `--family` | where | SHA-256 |", "|---|---|---|---|"]
    for row in catalogue.rows():
        known = {f.address: f for f in catalogue.files()}
        own = {
            at: f for at, f in known.items() if at == row.url or (f.architecture, f.tag) == (row.architecture, row.tag)
        }
        places = [(at, file.sha256) for at, file in own.items()]
        for place, digest in places or [(row.url or f"https://huggingface.co/{row.hub}", "–")]:
            lines.append(f"| {row.architecture}/{row.tag} | {row.family or '–'} | {place} | {digest} |")
    return lines


def known_name(name: str) -> str:
    """The architecture's name, with or without a tag of published weights. Raises `UnknownName`, and `ConfigError` for one
    whose sizes are not known here."""
    for known in [*ARCHITECTURES, *SAME]:
        if name.lower() == known.lower() or name.lower().startswith(f"{known.lower()}/"):
            return SAME.get(known, known)
    if name.lower().startswith("fg-clip2-"):
        raise ConfigError(
            f"--random knows no sizes of {name}: its folder alone states them (`python convert {name} DST`)"
        )
    try:
        return canonical_name(name)
    except UnknownName:
        raise UnknownName("model", name, [*SHIPPED, *VARIANTS, *ARCHITECTURES]) from None


def write_random(name: str, path: str, seed: int) -> None:
    """A checkpoint of that architecture with seeded random weights, the same on every machine; photos are seen as its
    published weights see them."""
    config = {**SHIPPED, **VARIANTS, **ARCHITECTURES}[name]
    shapes = {k: tuple(v.shape) for k, v in clip.CLIP(config).state_dict().items()}
    family = next((row.family for row in catalogue.rows() if row.architecture == name and row.family), None)
    look = families.Stated(family=family if name in ARCHITECTURES else None).preprocess(config.vision.image_size)
    if getattr(config.vision, "any_shape", False):
        look = from_siglip.preprocess_from({}, config)
    if vocabulary := stand_in(config.text):
        notice(
            f"{name} needs a vocabulary of its own: {path} has one of {config.text.vocab_size:,} letters in its place"
        )
    checkpoint.save_checkpoint(path, checkpoint.random_arrays(shapes, seed), config, look, vocabulary=vocabulary)


def stand_in(text: AnyText) -> vocabularies.VocabularyFile | None:
    """A vocabulary of letters for a text tower; None where CLIP's own serves."""
    if text.kind == "bert":
        return stand_in_vocabularies.letters_of_word_pieces(text.vocab_size)
    end = getattr(text, "end", None)
    if text.kind == "siglip" or end == 1:
        return stand_in_vocabularies.letters_of_sentence_pieces(text.vocab_size)
    return None if end is None else stand_in_vocabularies.letters_of_sentence_pieces(text.vocab_size, start=True)


def _numbers(config: CLIPConfig) -> list[str]:
    v, t = config.vision, config.text
    image = (
        f"blocks {v.layers}, width {v.width}"
        if isinstance(v, ResNetConfig)
        else f"{v.layers} layers, width {v.width}, patch {v.patch_size}"
    )
    return [str(v.image_size[0]), str(config.embed_dim), image, f"{t.layers} layers, width {t.width}"]
