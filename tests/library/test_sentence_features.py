"""Sentences encoded once: equal to the whole sequences of torch, cached or not, in whatever company."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.errors import DataError
from jclip.features import sentence_features as module
from jclip.features.sentence_features import sentence_features
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.weights.checkpoint import open_checkpoint

TEXTS = ("a dog", "two dogs and a very red umbrella by the sea.", "a cat on a mat!", "a dog", "x")


@pytest.fixture(params=[0, 1])
def source(request, tmp_path) -> ModelSource:
    from tests.toys import SMALL_VIT, toy_file

    return ModelSource(toy_file(tmp_path, SMALL_VIT, seed=request.param))


def test_equal_to_torchs_whole_sequences(source, close):
    torch = pytest.importorskip("torch")
    from tests.parity import torch_clip

    p, config = torch_clip.parameters(dict(open_checkpoint(source.checkpoint.path).arrays())), source.config
    tokens = torch.tensor(source.model.tokenize(TEXTS).astype(np.int64))
    t, mask = config.text, torch.full((77, 77), float("-inf")).triu(1)
    x = p["token_embedding.weight"][tokens] + p["positional_embedding"]
    x = torch_clip.transformer(
        x, p, "", t.layers, t.heads, torch_clip.activation(config.activation), config.norm_eps, mask
    )
    every = torch_clip.norm(x, p, "ln_final", config.norm_eps) @ p["text_projection"]
    every = (every / every.norm(dim=-1, keepdim=True)).detach().numpy()
    ends = tokens.argmax(1).numpy()
    sentences, places, shown = sentence_features(source, TEXTS, "fp32").batch(np.arange(5))
    assert shown.sum(axis=1).tolist() == (ends + 1).tolist() and shown.shape[1] == ends.max() + 1
    close(sentences, every[np.arange(5), ends], "features_normalised", "captions: at the end token")
    for row, end in enumerate(ends):
        close(places[row, : end + 1], every[row, : end + 1], "features_normalised", "captions: at every token")
        assert not places[row, end + 1 :].any() and not shown[row, end + 1 :].any()


@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_cached_or_not_and_in_parts(stored, source, monkeypatch):
    whole = sentence_features(source, TEXTS, stored)
    assert whole.tokens.dtype == {"fp32": np.float32, "fp16": np.float16}[stored]
    monkeypatch.setattr(module, "encode_captions", None)  # what would be called without a cache
    again = sentence_features(source, TEXTS, stored)
    assert all(np.array_equal(a, b) for a, b in zip(whole.batch(np.arange(5)), again.batch(np.arange(5)), strict=True))
    with pytest.raises(TypeError):
        sentence_features(source, TEXTS, {"fp32": "fp16", "fp16": "fp32"}[stored])
    with pytest.raises(TypeError):
        sentence_features(source, [*TEXTS, "one more"], stored)


def test_one_by_one_and_in_parts_they_are_the_same(source, monkeypatch, close):
    rows = np.arange(5)
    whole = sentence_features(source, TEXTS, "fp32").batch(rows)
    monkeypatch.setattr(module, "PART", 2)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    alone = sentence_features(source, TEXTS, "fp32").batch(rows)
    for a, b in zip(whole, alone, strict=True):
        close(a, b, "features_normalised", "captions: one by one")


def test_a_damaged_file_is_made_again(source, own_cache, capfd):
    before = sentence_features(source, TEXTS)
    (file,) = own_cache.glob("features/captions-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert np.array_equal(sentence_features(source, TEXTS).tokens, before.tokens)
    assert "is damaged: its bytes are not those that were written; it is computed again" in capfd.readouterr().err


def test_equal_sentences_are_kept_once(source):
    found = sentence_features(source, TEXTS)
    assert len(found) == 5 and found.starts[0] == found.starts[3] == 0
    assert len(found.tokens) == sum(found.lengths) - found.lengths[3]


def test_what_is_too_long_is_cut_and_counted(source, capfd, close):
    exact, longer = "dog " * 75, "dog " * 90
    found = sentence_features(source, ["a cat", exact, longer], "fp32")
    assert found.lengths.tolist() == [4, 77, 77] and found.truncated == 1
    assert "1 of 3 captions are longer than 77 tokens and were cut" in capfd.readouterr().err
    wanted = unit(source.model.encode_text(source.model.tokenize([exact])).numpy())
    close(found.sentences[1:2], wanted, "features_normalised")


def test_nothing_to_encode_is_refused(source):
    with pytest.raises(DataError, match="there are no captions to learn from: set captions to a file of them"):
        sentence_features(source, [])
