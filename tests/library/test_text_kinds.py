"""Text towers of several kinds: their configurations, their parameters by name, and the vocabulary inside a jclip file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError, ConfigError
from jclip.prompts.vocabularies import VocabularyFile
from jclip.readers import read_weights, safetensors
from jclip.weights import stored_vocabulary
from jclip.weights.checkpoint import describe, open_checkpoint, random_arrays, save_checkpoint
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.sample_ids import sample_ids
from jclip.weights.stored_vocabulary import check_takes_vectors, stored, tokenizer_of
from jclip.weights.text_configs import BertConfig
from jclip.weights.variants import SHIPPED, CLIPConfig
from tests.toys import SMALL_VIT, TEXT, TOY_SIGLIP, TOY_VIT, shapes_of

BERT = BertConfig(width=20, heads=5, layers=3, mlp_width=33, context_length=11, vocab_size=97, positions=13)
TOY_BERT = replace(TOY_VIT, text=BERT)
WORDS = VocabularyFile("wordpiece", "[PAD]\n[UNK]\n鸟\n".encode(), {"lower": True})


def written(folder, config=TOY_BERT, vocabulary=WORDS, name="toy.safetensors"):
    arrays = random_arrays(parameter_shapes(config), 3)
    save_checkpoint(folder / name, arrays, config, Preprocess(size=config.vision.image_size), {}, vocabulary)
    return folder / name


@pytest.mark.parametrize("config", [TOY_VIT, TOY_BERT, replace(TOY_VIT, text=replace(TEXT, end=2))])
def test_shapes_without_building_are_those_of_the_model_and_a_config_survives_json(config):
    assert parameter_shapes(config) == shapes_of(config)
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_files_of_clip_say_what_older_versions_wrote():
    for config in (TOY_VIT, *SHIPPED.values()):
        said = describe(config, Preprocess(size=config.vision.image_size), 4.6)
        assert {"kind", "end"}.isdisjoint(json.loads(said["config"])["text"]) and said["tokenizer"] == "openai-bpe"
        assert "tokenizer_settings" not in said


def test_the_vocabulary_comes_back_out_of_the_file(tmp_path):
    path = written(tmp_path)
    found = open_checkpoint(path)
    assert found.vocabulary == WORDS and found.config == TOY_BERT
    assert "tokenizer" not in found.tensors and "tokenizer" in read_weights(path)
    assert open_checkpoint(written(tmp_path, SMALL_VIT, None, "own.safetensors")).vocabulary is None


def test_a_file_without_the_key_is_of_clips_own_vocabulary(tmp_path):
    file = read_weights(written(tmp_path, SMALL_VIT, None))
    said = {k: v for k, v in file.metadata.items() if k != "tokenizer"}
    old = tmp_path / "old.safetensors"
    safetensors.write(old, {k: t.read() for k, t in file.items()}, said)
    found = open_checkpoint(old)
    words = tokenizer_of(found.config.text, found.vocabulary)
    assert found.vocabulary is None and words.kind == "openai-bpe" and words.vocab_size == 49408


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "openai-bpe"}, "needs a vocabulary"),
        ({"tokenizer": "of tomorrow"}, "must be one of openai-bpe, wordpiece, tokenizer.json, got 'of tomorrow'"),
        ({"tokenizer_settings": "[1"}, "tokenizer_settings"),
    ],
)
def test_a_damaged_vocabulary_is_one_line(tmp_path, changed, message):
    file = read_weights(written(tmp_path))
    bad = tmp_path / "bad.safetensors"
    safetensors.write(bad, {k: t.read() for k, t in file.items()}, file.metadata | changed)
    with pytest.raises(CheckpointError, match="metadata is damaged") as raised:
        open_checkpoint(bad)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("array", [None, np.zeros((2, 2), np.uint8), np.zeros(4, np.float32)])
def test_bytes_that_are_not_there_are_one_line(tmp_path, array):
    file = read_weights(written(tmp_path))
    bad, further = tmp_path / "bad.safetensors", {} if array is None else {"tokenizer": array}
    kept = {k: t.read() for k, t in file.items() if k != "tokenizer"}
    safetensors.write(bad, {**kept, **further}, file.metadata)
    with pytest.raises(CheckpointError, match="the tensor tokenizer must hold at most"):
        open_checkpoint(bad)


def test_a_bert_needs_its_vocabulary_and_learned_prompts_a_tower_that_takes_them(monkeypatch):
    with pytest.raises(ConfigError, match="must come with their vocabulary, got none"):
        tokenizer_of(BERT, None)
    with pytest.raises(ConfigError, match="image tower alone"):
        tokenizer_of(None, None)
    for text in (TEXT, BERT, TOY_SIGLIP.text):
        check_takes_vectors(text)
    with pytest.raises(ConfigError, match="must be read by a text tower, got an image tower alone"):
        check_takes_vectors(None)
    monkeypatch.setattr(stored_vocabulary, "TAKE_VECTORS", ("clip",))
    with pytest.raises(ConfigError, match="of CLIP's text tower, got a BERT, Chinese-CLIP's text tower"):
        check_takes_vectors(BERT)


def test_the_context_of_a_table_with_more_positions_than_it_uses(tmp_path):
    found = open_checkpoint(written(tmp_path))
    assert found.with_context(13).config.text.context_length == 13
    assert found.with_context(13).tensors.keys() == found.tensors.keys()
    with pytest.raises(ConfigError, match="must be at most 13 long"):
        found.with_context(14)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "of tomorrow"},
        {"heads": 3},
        {"pad": 97},
        {"context_length": 14},
        {"activation": "relu"},
        {"norm_eps": 0},
    ],
)
def test_impossible_towers_are_refused_by_key(changed):
    values = TOY_BERT.to_dict()
    with pytest.raises(ConfigError, match=f"text.*{next(iter(changed))}|text.heads"):
        CLIPConfig.from_dict(values | {"text": values["text"] | changed})


def test_ids_for_trials_fit_the_tower():
    for text in (TEXT, BERT, replace(TEXT, end=2)):
        ids = sample_ids(text, 2)
        assert ids.shape == (2, 11) and ids.max() < text.vocab_size


def test_what_is_stored_is_the_bytes():
    arrays, said = stored(WORDS)
    assert bytes(arrays["tokenizer"]) == WORDS.data and json.loads(said["tokenizer_settings"]) == {"lower": True}
