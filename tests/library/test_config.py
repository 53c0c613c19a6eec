"""Strict YAML: what PyYAML lets pass, wrong keys and types, paths, overrides."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from jclip.config import (
    CaptionConfig,
    DataConfig,
    OptimConfig,
    ReadWith,
    build,
    load_values,
    project_of,
    refuse_unread,
    to_values,
    to_yaml,
)
from jclip.errors import ConfigError


@dataclass(frozen=True)
class Toy:
    model: str
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    alpha: float = 1.0
    mode: Literal["end", "middle"] = "end"
    family: str | None = None
    search: bool = False
    steps: tuple[int, int] = (20, 200)
    READ_WITH: ClassVar[ReadWith] = {
        "search=true": ("steps",), "mode=end|middle": ("alpha",), "family!=": ("mode",), "": ("optim.warmup",),
    }  # fmt: skip


def read(tmp_path, text, *overrides):
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return build(Toy, load_values(path, overrides), "toy.yaml")


def test_defaults_then_file_then_command_line(tmp_path):
    assert read(tmp_path, "model: RN50").alpha == 1.0
    assert read(tmp_path, "model: RN50\nalpha: 2").alpha == 2.0
    assert read(tmp_path, "model: RN50\nalpha: 2", "alpha=3.5").alpha == 3.5
    assert read(tmp_path, "model: RN50", "optim.lr=1e-5", "data.shots=4").optim.lr == 1e-5


@pytest.mark.parametrize("text, override", [("model: x\noptim: {lr: 1e-4}", ()), ("model: x", ("optim.lr=1e-4",))])
def test_what_a_group_leaves_out_is_the_schemas_own(tmp_path, text, override):
    @dataclass(frozen=True)
    class Recipe:
        model: str
        optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="sgd", lr=2e-3, weight_decay=5e-4))

    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    made = build(Recipe, load_values(path, override), "recipe.yaml").optim
    assert made == OptimConfig(name="sgd", lr=1e-4, weight_decay=5e-4)


def test_an_entrys_spelling_of_keys_is_taken(tmp_path):
    assert read(tmp_path, "model: RN50", "optim.epoches=5").optim.epochs == 5
    with pytest.raises(ConfigError, match="unknown key optim.epoches, did you mean 'epochs'"):
        read(tmp_path, "model: RN50\noptim: {epochs: 3, epoches: 4}")
    with pytest.raises(ConfigError, match="unknown key ckt_gap"):  # this schema has nothing that it could mean
        read(tmp_path, "model: RN50\nckt_gap: 5")


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3.0),
        ("+1.5e+2", 150.0),
        ("7", 7.0),
    ],
)
def test_numbers_are_numbers(tmp_path, text, value):
    got = read(tmp_path, f"model: m\nalpha: {text}").alpha
    assert got == value and isinstance(got, float)


WRONG = {
    "model: m\nalhpa: 1": "toy.yaml: unknown key alhpa, did you mean 'alpha'?",
    "model: m\ndata: {shot: 4}": "toy.yaml: unknown key data.shot, did you mean 'shots'?",
    "alpha: 1": "toy.yaml: model is missing",
    "model: m\nalpha: 1\nalpha: 2": "key 'alpha' stands on line 2 and again on line 3",
    "model: m\ndata:\n  shots: 1\n  shots: 2": "key 'shots' stands on line 3 and again on line 4",
    "model: m\nalpha: 010": "toy.yaml: alpha must be a number, got '010'",
    "model: m\nalpha: 1_000": "toy.yaml: alpha must be a number, got '1_000'",
    "model: m\nalpha: .nan": "toy.yaml: alpha must be a number, got '.nan'",
    "model: m\nalpha: 1e999": "toy.yaml: alpha must be a finite number, got inf",
    "model: m\nalpha: true": "toy.yaml: alpha must be a number, got True",
    "model: 5": "toy.yaml: model must be text, got 5",
    "model: m\nsearch: yes": "toy.yaml: search must be true or false, got 'yes'",
    "model: m\nsearch: 1": "toy.yaml: search must be true or false, got 1",
    "model: m\nmode: midle": "toy.yaml: mode must be one of end, middle, got 'midle', did you mean 'middle'?",
    "model: m\nsteps: [1, 2, 3]": "toy.yaml: steps must be a list of 2 values, got [1, 2, 3]",
    "model: m\nsteps: [1, x]": "toy.yaml: steps must be an integer, got 'x'",
    "model: m\ndata: 5": "toy.yaml: data must be a group of settings, got 5",
    "model: m\ndata: {shots: -1}": "toy.yaml: data.shots must be at least 0 (all photos), got -1",
    "model: m\noptim: {epochs: 0}": "toy.yaml: optim.epochs must be at least 1, got 0",
    "model: [": "not valid YAML",
    "": "holds no settings",
    "- a\n- b": "holds no settings",
    "a: !!python/object/apply:os.system [true]": "not valid YAML",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_reported_with_file_and_key(tmp_path, text):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert WRONG[text] in str(error.value) and "\n" not in str(error.value)


RANGES = {
    DataConfig: ["shots=-1", "val_shots=-2", "pool=-1"],
    CaptionConfig: ["scenes=1", "val_scenes=1", "easy_epochs=-1"],
    OptimConfig: [
        "epochs=0", "batch=0", "step_epochs=0", "lr=-0.5", "warmup=-1.0", "weight_decay=-1.0", "eps=0.0", "gamma=1.5",
        "momentum=1.0", "average=1.0", "betas=[0.9, 1.2]",
    ],
}  # fmt: skip


Nested = {schema: make_dataclass("Nested", [("head_optim", schema)], frozen=True) for schema in RANGES}


@pytest.mark.parametrize("schema, setting", [(schema, text) for schema, texts in RANGES.items() for text in texts])
def test_a_value_out_of_range_is_named_with_its_group_its_range_and_what_was_given(schema, setting):
    key, given = setting.split("=")
    value = [0.9, 1.2] if key == "betas" else float(given) if "." in given else int(given)
    group = "optim" if schema is OptimConfig else "data"
    with pytest.raises(ConfigError, match=rf"^{group}\.{key} must be (at least|above|in) .*, got {re.escape(given)}$"):
        schema(**{key: tuple(value) if key == "betas" else value})
    with pytest.raises(ConfigError, match=rf"^x.yaml: head_optim\.{key} must be .*, got {re.escape(given)}$"):
        build(Nested[schema], {"head_optim": {key: value}}, "x.yaml")


@pytest.mark.parametrize(
    "override, message",
    [
        ("alpha", "'alpha' is not a setting: write key=value"),
        ("=3", "'=3' is not a setting"),
        ("alpha.x=3", "alpha.x: alpha is a single value and has no x inside"),
        ("data.shots=many", "data.shots must be an integer, got 'many'"),
        ("alpha=[", "'[' is not a valid value"),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read(tmp_path, "model: m\nalpha: 1", override)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="can't read .*none.yaml: No such file"):
        load_values(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_values(tmp_path / "latin.yaml")


def test_paths_in_a_file_belong_to_its_project_and_those_typed_to_the_caller(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "项目 one", tmp_path / "elsewhere"
    (project / "configs" / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    yaml = project / "configs" / "deep" / "toy.yaml"
    yaml.write_text(
        "model: weights/ViT-B-32.pkl\ndata: {root: photos, features: ../shared/x.npz, classes: ''}\n", encoding="utf-8"
    )
    monkeypatch.chdir(elsewhere)
    assert project_of(yaml) == project and project_of(elsewhere / "x.yaml") == elsewhere
    cfg = build(Toy, load_values(yaml, ["data.test=mine/test.txt"]), "toy")
    assert cfg.model == str(project / "weights" / "ViT-B-32.pkl")
    assert cfg.data.root == str(project / "photos") and cfg.data.features == str(tmp_path / "shared" / "x.npz")
    assert cfg.data.test == str(elsewhere / "mine" / "test.txt") and cfg.data.classes == ""
    assert build(Toy, load_values(yaml, ["model=ViT-B/32"]), "toy").model == "ViT-B/32"
    assert build(Toy, load_values(yaml, ["data.root=~/x"]), "toy").data.root == os.path.expanduser("~/x")  # noqa: PTH111


def test_the_resolved_config_can_be_fed_back(tmp_path):
    cfg = read(tmp_path, "model: m\nalpha: 1e-5\nsteps: [3, 4]\nfamily: null\ndata: {root: 图片}")
    (tmp_path / "again.yaml").write_text(to_yaml(to_values(cfg)), encoding="utf-8")
    assert build(Toy, load_values(tmp_path / "again.yaml"), "again.yaml") == cfg


def test_reading_a_config_needs_no_jittor():
    import subprocess
    import sys

    root = Path(__file__).parent.parent.parent
    code = (
        "import sys; import finetune; from jclip.train.configs import read_config\n"
        f"read_config({str(root / 'configs/tip_adapter/features_caltech_lvis.yaml')!r})\n"
        "assert not {'jittor', 'torch', 'jittor_utils'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_paths_of_installed_configs_belong_to_the_callers_folder(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "finetune" / "configs"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("model: runs/x.safetensors\ndata: {root: photos, train: shapes}\n")
    monkeypatch.chdir(tmp_path)
    assert load_values(folder / "a.yaml")["data"] == {"root": f"{tmp_path}/site/finetune/photos", "train": "shapes"}
    (folder.parent / "__init__.py").write_text("")
    values = load_values(folder / "a.yaml")
    assert values["model"] == f"{tmp_path}/runs/x.safetensors" and values["data"]["root"] == f"{tmp_path}/photos"


@dataclass(frozen=True)
class Part:
    weights: str
    share: float = 1.0


@dataclass(frozen=True)
class Whole:
    models: tuple[Part, ...] = ()


def test_groups_in_a_list(tmp_path, monkeypatch):
    """Each is built and named by its number; `models.1.share=2` changes one; paths are relative as others are."""
    (tmp_path / "other").mkdir()
    (tmp_path / "m.yaml").write_text("models:\n  - weights: ./a.pt\n  - {weights: ViT-B/32, share: 3}\n")
    monkeypatch.chdir(tmp_path / "other")
    values = load_values(tmp_path / "m.yaml", ["models.1.weights=./b.pt", "models.0.share=2"])
    wanted = (Part(str(tmp_path / "a.pt"), 2.0), Part(str(tmp_path / "other" / "b.pt"), 3.0))
    assert build(Whole, values, "m.yaml").models == wanted
    assert build(Whole, {"models": {"weights": "x"}}, "m.yaml").models == (Part("x"),)
    for given, message in (
        ({"models": [{"weights": "x"}, {"share": 1}]}, "models.1.weights is missing"),
        ({"models": [{"weights": "x", "shrae": 1}]}, "unknown key models.0.shrae, did you mean 'share'"),
        ({"models": ["x"]}, "models.0 must be a group of settings, got 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(Whole, given, "m.yaml")
    for override in ("models.2.share=1", "models.x.share=1", "models.2={weights: x}"):
        with pytest.raises(ConfigError, match="is none of the list's 2 entries"):
            load_values(tmp_path / "m.yaml", [override])


UNREAD = "must be left out: it is read with search=true alone, got search=false"


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (
            "model: a\nsteps: [1, 2]",
            [],
            "toy.yaml: steps must be left out: it is read with search=true alone, got search=false",
        ),
        ("model: a\nsteps: [1, 2]", ["search=false"], ""),
        ("model: a\nsteps: [1, 2]\nsearch: true", [], ""),
        ("model: a", ["steps=[1, 2]"], f"steps {UNREAD}"),
        ("model: a", ["alpha=2", "optim.lr=1"], ""),
        ("model: a", ["mode=middle"], 'mode must be left out: it is read with family!="" alone, got family=""'),
        ("model: a", ["mode=middle", "family=openai"], ""),
        ("model: a", ["optim.warmup=3"], "optim.warmup must be left out: this recipe does not read it"),
        (
            "model: a\noptim: {momentum: 0.5}",
            [],
            "toy.yaml: optim.momentum must be left out: it is read with optim.name=sgd alone, got optim.name=adamw",
        ),
        ("model: a\noptim: {momentum: 0.5, name: sgd}", [], ""),
        ("model: a", ["optim={warmup: 3}"], "optim.warmup must be left out: this recipe does not read it"),
    ],
)
def test_settings_that_nothing_would_read(tmp_path, text, overrides, said):
    made, place = read(tmp_path, text, *overrides), tmp_path / "toy.yaml"
    if not said:
        refuse_unread(made, load_values(place), overrides, "toy.yaml")
        refuse_unread(made, to_values(made), (), "a run's own, which has all settings")
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        refuse_unread(made, load_values(place), overrides, "toy.yaml")


@pytest.mark.parametrize(
    "given",
    [
        {"root": "x", "text_features": "t"}, {"train": "x", "pool": 16}, {"features": "f", "root": "x"},
        {"features": "f", "test": "x"}, {"split_file": "s", "classes": "c"}, {"split_file": "s", "text_features": "t"},
    ],
)  # fmt: skip
def test_data_of_two_sources(given):
    with pytest.raises(ConfigError, match=f"data.{[*given][-1]} must be left out with"):
        DataConfig(**given).check_one_source()
    DataConfig(**{next(iter(given)): "x"}).check_one_source()
