"""A BERT as the text tower: fused and plain, packed and padded, in half precision, computed again, with low-rank updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jclip import kernels
from jclip.errors import DataError
from jclip.features.heads import zero_shot_head
from jclip.features.source import ModelSource
from jclip.model.clip import CLIP, save_model
from jclip.model.low_rank import Adapters, merge_updates
from jclip.model.parameter_groups import LowRank
from jclip.model.recompute import recompute_blocks
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, random_arrays
from tests.library.test_kernels import needs_onednn
from tests.toys import SMALL_BERT, TOY_BERT, chinese_words, shapes_of, toy_batch, toy_file


def model_of(seed: int, config=TOY_BERT) -> CLIP:
    model = CLIP(config)
    load_strict(model, random_arrays(shapes_of(config), seed), "random")
    model.eval()
    return model


def gradients(model, ids, weights):
    named = trainable(model, ["text.*"])
    loss = (model.encode_text(ids) * weights).sum()
    found = jt.grad(loss, list(named.values()))
    return {name: g.numpy() for name, g in zip(named, found, strict=True)}


@needs_onednn
@pytest.mark.parametrize("seed", [0, 1])
def test_fused_and_plain_agree(seed, monkeypatch, close):
    _, ids = toy_batch(TOY_BERT, seed)
    weights, found = np.random.default_rng(seed).standard_normal((5, 14)).astype(np.float32), []
    for way in ("cpu", "plain"):
        monkeypatch.setattr(kernels, "chosen", lambda way=way: way)
        model = model_of(seed)
        with jt.no_grad():
            text = model.encode_text(ids).numpy()
        found.append((text, gradients(model, ids, weights)))
    close(found[0][0], found[1][0], "kernel", "BERT, fused and plain: text")
    for name, gradient in found[0][1].items():
        close(gradient, found[1][1][name], "gradient_relative", "BERT, fused and plain: gradients", relative=True)


def test_a_text_does_not_depend_on_those_beside_it(close):
    model, (_, ids) = model_of(0), toy_batch(TOY_BERT, 0)
    with jt.no_grad():
        together, (_, every) = model.encode_text(ids).numpy(), model.encode_text(ids, dense=True)
        alone = np.concatenate([model.encode_text(row[None]).numpy() for row in ids])
        vectors = model.embed(ids)
        padded, dense = model.encode_text_embeddings(vectors, model.ends(ids), dense=True)
    close(alone, together, "kernel", "BERT, packed against one by one")
    close(padded.numpy(), together, "kernel", "BERT, packed against padded")
    close(dense.numpy(), every.numpy(), "kernel", "BERT, packed against padded: every token")


def test_padding_is_what_stands_behind_the_last_token():
    model = model_of(0)
    ids = np.array([[5, 6, 0, 0], [5, 0, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert model.ends(ids).tolist() == [1, 2, 0, 3] and not model.causal
    with jt.no_grad():
        found = model.encode_text(ids).numpy()
        assert np.isfinite(found).all()
        hidden = model.encode_text(np.array([[5, 0, 7]])).numpy()  # a token of padding in a text is not looked at
        assert np.array_equal(hidden[0], model.encode_text(ids[1:2, :3]).numpy()[0])
    with pytest.raises(DataError, match="token 97 is beyond this model's vocabulary of 97"):
        model.encode_text(np.array([[97]]))


@pytest.mark.skipif(bool(kernels.why_no_half("bf16")), reason="this CPU does not compute in bf16")
def test_half_precision_stays_near(close):
    for seed in (0, 1):
        _, ids = toy_batch(TOY_BERT, seed)
        wide, half = model_of(seed), model_of(seed).to("bf16")
        assert half.state_dict()["text.transformer.resblocks.0.attn.in_proj_weight"].dtype == "bfloat16"
        with jt.no_grad():
            for given in (ids, ids[:1].repeat(3, axis=0)):
                a, b = (m.encode_text(given).numpy() for m in (wide, half))
                close(b, a, "half_tower_relative", "BERT in bf16, relative", relative=True)
                assert not np.array_equal(a, b)


def test_blocks_that_are_computed_again_give_the_same_gradients():
    _, ids = toy_batch(TOY_BERT, 0)
    weights = np.random.default_rng(0).standard_normal((5, 14)).astype(np.float32)
    model = model_of(0)
    once = gradients(model, ids, weights)
    recompute_blocks(model, trainable(model, ["text.*"]))
    assert type(model.text.transformer.resblocks[0].execute).__name__ == "_Recomputed"
    again = gradients(model, ids, weights)
    assert all(np.array_equal(again[name], gradient) for name, gradient in once.items())


def test_low_rank_updates_attached_and_merged(close):
    model, (_, ids) = model_of(0), toy_batch(TOY_BERT, 0)
    adapters = Adapters(model, LowRank(rank=2, dropout=0.0, towers="text"), seed=1)
    rng = np.random.default_rng(0)
    for name, var in adapters.params.items():
        assert name.startswith("text.transformer.resblocks.")
        var.update(jt.array(rng.standard_normal(tuple(var.shape)).astype(np.float32)))
    with jt.no_grad():
        before = model.encode_text(ids).numpy()
        adapters.attach()
        attached = model.encode_text(ids).numpy()
        adapters.detach()
        scaled = {
            k: v.numpy() * (adapters._config.scale if k.endswith(".B") else 1) for k, v in adapters.params.items()
        }
        merge_updates(model, {k: v.astype(np.float32) for k, v in scaled.items()})
        merged = model.encode_text(ids).numpy()
    assert np.abs(attached - before).max() > 0.01
    close(merged, attached, "features", "BERT: low-rank updates merged")


def test_a_model_is_written_with_its_vocabulary(tmp_path):
    pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    source = ModelSource(toy_file(tmp_path, SMALL_BERT))
    save_model(tmp_path / "again.safetensors", source.model, source.preprocess)
    again = ModelSource(tmp_path / "again.safetensors")
    assert again.checkpoint.vocabulary == chinese_words(1057)
    texts = ["一只红的", "a big cat.", "绿 blue"]
    assert np.array_equal(source.tokenize(texts), again.model.tokenize(texts))
    assert again.tokenize(texts)[:, 0].tolist() == [2, 2, 2]
    assert again.vocabulary_digest == source.vocabulary_digest


def test_what_is_kept_of_texts_depends_on_the_vocabulary(tmp_path):
    """Of one file's weights beside two vocabularies, a head of one is no head of the other."""
    pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    file, words = toy_file(tmp_path, SMALL_BERT), chinese_words(1057)
    sources = [ModelSource(file), ModelSource(file)]
    pieces = words.data.decode().split("\n")
    pieces[5], pieces[6] = pieces[6], pieces[5]
    other = replace(words, data="\n".join(pieces).encode())
    sources[1].checkpoint = replace(sources[1].checkpoint, vocabulary=other)
    heads = [zero_shot_head(source, [["一"], ["只"]]).weights for source in sources]
    assert np.array_equal(heads[0], heads[1][::-1]) and not np.array_equal(*heads)
