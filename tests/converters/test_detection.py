"""Architectures recognised by shapes alone, against the models that open_clip and timm build without memory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from jclip.errors import CheckpointError, UnknownName
from jclip.paths import compute_sha256
from jclip.readers import LazyTensor, safetensors
from jclip.weights import catalogue
from jclip.weights.checkpoint import open_checkpoint
from jclip.weights.chinese_variants import CHINESE_TOWERS
from jclip.weights.families import FAMILIES, NOT_READ, Stated
from jclip.weights.identify import identify, layout_of
from jclip.weights.layouts import from_siglip
from jclip.weights.parameter_shapes import config_from_shapes, parameter_shapes
from jclip.weights.variants import ARCHITECTURES, VARIANTS, EVAConfig, architecture_name

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
PUBLISHED = {  # millions of parameters
    "ViT-B-16-plus-240": 208.38, "ViT-H-14": 986.11, "ViT-g-14": 1366.68, "ViT-bigG-14": 2539.57, "EVA02-B-16": 149.69,
    "EVA02-L-14": 427.76, "EVA02-E-14": 4704, "EVA02-E-14-plus": 5045, "Chinese-CLIP-RN50": 77, "Chinese-CLIP-ViT-B-16": 188,
    "Chinese-CLIP-ViT-L-14": 406, "Chinese-CLIP-ViT-L-14-336": 407, "Chinese-CLIP-ViT-H-14": 958,
}  # fmt: skip
OF_TIMM = ("PE-Core", "MobileCLIP")  # under other names: see test_encoders_2025
OTHERS = ("EVA-CLIP", "Chinese-CLIP", "LongCLIP", *OF_TIMM)
OPEN_CLIPS = [name for name in ARCHITECTURES if not name.startswith(OTHERS) and "SigLIP" not in name]
SIGLIPS = ["ViT-B-16-SigLIP", "ViT-SO400M-16-SigLIP-i18n-256", "ViT-SO400M-14-SigLIP2-378", "ViT-gopt-16-SigLIP2-384"]


@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_shapes_of_open_clips_own_models_report_the_architecture(name):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("attn_mask")}
    assert layout_of(shapes, name) == "open_clip"
    shapes = {k.removeprefix("text."): shape or (1,) for k, shape in shapes.items()}
    assert shapes == parameter_shapes(ARCHITECTURES[name])
    found = config_from_shapes(shapes, Stated("openclip"), name)
    assert found == ARCHITECTURES[name]
    if name not in ("ViT-B-32-256", "ViT-L-14-280"):  # names of one shape: another input size is all the difference
        assert architecture_name(found) == name


@pytest.mark.parametrize("name", SIGLIPS)
def test_shapes_of_open_clips_siglip_are_ours(name):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    theirs = {k: LazyTensor(tuple(v.shape), "float32", None) for k, v in model.state_dict().items()}
    assert layout_of(theirs, name) == from_siglip.OPEN_CLIP
    made, report = from_siglip.open_clip(theirs)
    shapes = {k: tensor.shape or (1,) for k, tensor in made.items()}
    assert not report.unknown and shapes == parameter_shapes(ARCHITECTURES[name])
    assert architecture_name(config_from_shapes(shapes, Stated("siglip"), name)) == name


@pytest.mark.parametrize("name", [*VARIANTS, "EVA-CLIP-8B", "EVA-CLIP-8B-448", "EVA-CLIP-18B", *CHINESE_TOWERS])
def test_shapes_report_openais_and_evas_as_well(name):
    config = {**VARIANTS, **ARCHITECTURES}[name]
    family = "openai" if name in VARIANTS else "chinese-clip" if name in CHINESE_TOWERS else "eva"
    found = config_from_shapes(parameter_shapes(config), Stated(family), name)
    assert found == config and architecture_name(found) == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in parameter_shapes(ARCHITECTURES[name]).values())
    assert abs(count / 1e6 - PUBLISHED[name]) < (0.01 if PUBLISHED[name] % 1 else 1)


def test_no_two_names_for_one_architecture():
    got = [architecture_name(config) for config in {**VARIANTS, **ARCHITECTURES}.values()]
    assert got == [*VARIANTS, *ARCHITECTURES]


def test_billions_have_the_published_size():
    """The papers' totals, 8.1 and 18.1 billion, add rounded towers: 7.5 and 17.5 of images, 0.7 of texts."""
    for name, billions in {"EVA-CLIP-8B": 7.5, "EVA-CLIP-18B": 17.5}.items():
        shapes = parameter_shapes(ARCHITECTURES[name])
        image = sum(int(np.prod(v, dtype=np.int64)) for k, v in shapes.items() if k.startswith("visual."))
        text = sum(int(np.prod(v, dtype=np.int64)) for k, v in shapes.items() if not k.startswith("visual."))
        assert abs(image / 1e9 - billions) < 0.15 and round(text / 1e9, 1) == 0.7


# What shapes don't say


def test_heads_of_large_towers_are_not_64_wide():
    """openai/CLIP's rule, width // 64, would load these without an error and compute something else."""
    for name, heads in {"ViT-H-14": 16, "ViT-g-14": 16, "ViT-bigG-14": 16, "ViT-e-14": 16, "EVA-CLIP-18B": 40}.items():
        config = ARCHITECTURES[name]
        found = config_from_shapes(parameter_shapes(config), Stated("openclip"), name)
        assert found.vision.heads == heads != config.vision.width // 64


def test_an_activation_that_nobody_stated_is_an_error_with_all_choices():
    shapes = parameter_shapes(VARIANTS["ViT-B/32"])
    with pytest.raises(CheckpointError, match="does not say which activation") as error:
        config_from_shapes(shapes, Stated(), "x.pt")
    assert all(name in str(error.value) for name in FAMILIES) and "--activation" in str(error.value)


def test_statements_go_before_the_familys():
    stated = Stated(family="dfn5b", activation="gelu", normalisation="imagenet")
    assert stated.stated_activation("x") == "gelu"
    shown = stated.preprocess((30, 20))
    assert (shown.size, shown.resize, shown.mean) == ((30, 20), "squash", (0.485, 0.456, 0.406))
    assert Stated(family="laion2b-vit-l14").preprocess((224, 224)).mean == (0.5, 0.5, 0.5)
    assert Stated(family="dfn2b").preprocess((224, 224)).resize == "shortest"
    with pytest.raises(UnknownName, match="normalisation 'openia', did you mean 'openai'"):
        Stated(normalisation="openia")


def test_a_grid_that_is_not_square_must_be_stated():
    config = replace(VARIANTS["ViT-B/32"], vision=replace(VARIANTS["ViT-B/32"].vision, image_size=(224, 160)))
    shapes = parameter_shapes(config)
    with pytest.raises(
        CheckpointError, match="positions must form a square grid, got 35: pass --image-size HEIGHT WIDTH"
    ):
        config_from_shapes(shapes, Stated("openai"), "x")
    assert config_from_shapes(shapes, Stated("openai", image_size=(224, 160)), "x") == config


def test_a_vocabulary_of_another_tokenizer_is_refused():
    config = replace(VARIANTS["ViT-B/32"], text=replace(VARIANTS["ViT-B/32"].text, vocab_size=32000))
    with pytest.raises(CheckpointError, match="CLIPA.*a vocabulary of 32000"):
        config_from_shapes(parameter_shapes(config), Stated("metaclip"), "x")


# The catalogue

NAFLEX = tuple(f"ViT-{size}-16-SigLIP2-NaFlex" for size in ("B", "SO400M"))
ELSEWHERE = ("EVA-CLIP", "Chinese-CLIP", "LongCLIP", "FG-CLIP2", *NAFLEX)  # that open_clip does not publish


def test_the_catalogue_is_open_clips():
    """Every row's activation, normalisation and resize mode are those that open_clip states of these weights."""
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    from open_clip.pretrained import _PRETRAINED

    compared = 0
    for row in catalogue.rows():
        said = _PRETRAINED.get(row.architecture, {}).get(row.tag.replace("metaclip_2_5b", "metaclip_fullcc"))
        if said is None:
            assert row.architecture.startswith(ELSEWHERE), row
            continue
        shown = Stated(family=row.family).preprocess((224, 224))
        assert (shown.mean, shown.std) == (said["mean"], said["std"]), row
        assert (shown.resize, shown.interpolation) == (said["resize_mode"], said["interpolation"]), row
        assert (FAMILIES[row.family].activation == "quickgelu") == bool(said.get("quick_gelu")), row
        assert row.hub == said["hf_hub"].rstrip("/") and row.url == said.get("url", "")
        compared += 1
    assert compared == len(catalogue.rows()) - sum(row.architecture.startswith(ELSEWHERE) for row in catalogue.rows())


def test_sizes_of_the_catalogue_are_those_of_the_architectures():
    architectures = {**ARCHITECTURES, **{n.replace("/", "-").replace("@336px", "-336"): c for n, c in VARIANTS.items()}}
    for row in catalogue.rows():
        config = architectures.get(row.architecture)
        if config is None:
            continue
        count = sum(math.prod(shape) for k, shape in parameter_shapes(config).items() if "running_" not in k)
        assert abs(count - int(row.parameters)) <= 2048, (
            row
        )  # timm's towers have a bias of zeros beside their projection
        assert int(row.input) == config.vision.image_size[0], row
        assert f"{4 * count / 1e9:.1f}" == row.memory


def test_names_of_the_catalogue():
    wanted = catalogue.lookup("ViT-bigG-14-quickgelu/metaclip_2_5b")
    assert wanted.family == "metaclip" and wanted.hub == "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b"
    assert catalogue.lookup("ViT-bigG-14/metaclip_2_5b") == wanted
    assert catalogue.lookup("BAAI/EVA-CLIP-18B").architecture == "EVA-CLIP-18B"
    assert catalogue.lookup("ViT-B-32/no_such_tag") is None
    known = {*ARCHITECTURES, *(name.replace("/", "-").replace("@336px", "-336") for name in VARIANTS)}
    known |= {"MobileCLIP2-B"}  # of MobileCLIP-B's sizes
    assert {row.architecture for row in catalogue.rows() if not row.architecture.startswith("FG-")} <= known
    assert {row.family for row in catalogue.rows() if not row.architecture.startswith("FG-")} <= set(FAMILIES)
    assert not set(NOT_READ) & set(FAMILIES)


def test_hashes_are_hashes_of_files_in_the_catalogue():
    """Their publishers put them into addresses: OpenAI whole, open_clip's releases the first eight digits."""
    assert len({file.sha256 for file in catalogue.files()}) == len(catalogue.files()) > 40
    for file in catalogue.files():
        row = catalogue.lookup(f"{file.architecture}/{file.tag}")
        assert row and len(file.sha256) in (8, 64) and int(file.sha256, 16)
        assert catalogue.by_sha256(f"{file.sha256:0<64}") == row
        if f"{file.place}/{file.file}" == row.url:
            assert file.sha256 in row.url or row.family.startswith("metaclip")
        else:
            assert file.place in (f"https://huggingface.co/{row.hub}", "https://huggingface.co/QuanSun/EVA-CLIP")


def test_a_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    """Nobody needs --family for a file whose SHA-256, or its first digits, the catalogue has."""
    from tests.converters.test_out import OPENAI_VIT
    from tests.toys import shapes_of

    path = tmp_path / "weights.safetensors"
    safetensors.write(path, {k: np.ones(s, np.float32) for k, s in shapes_of(OPENAI_VIT).items()})
    with pytest.raises(CheckpointError, match="does not say which activation"):
        open_checkpoint(path, head_width=64)
    digits = compute_sha256(path)[:8]
    known = catalogue.File("ViT-L-14", "laion2b_s32b_b82k", "", "", digits)
    monkeypatch.setattr(catalogue, "files", lambda: (known,))
    found = open_checkpoint(path, head_width=64)
    assert found.config == replace(OPENAI_VIT, activation="gelu") and found.preprocess.mean == (0.5, 0.5, 0.5)
    assert identify(path, Stated(head_width=64)).checkpoint.metadata["source_family"] == "laion2b-vit-l14"


def test_every_eva_is_of_a_kind_that_is_tested():
    from tests.toys import TOY_EVAS

    def kind(v: EVAConfig):
        return v.swiglu, v.sub_norm, v.rope, v.post_norm, v.rms_norm, v.bias

    kinds = {kind(c.vision) for c in ARCHITECTURES.values() if isinstance(c.vision, EVAConfig)}
    assert kinds == {kind(c.vision) for c in TOY_EVAS.values()}
