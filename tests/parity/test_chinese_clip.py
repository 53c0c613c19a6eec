"""Chinese-CLIP against transformers' own model: both layouts in, features, every token, gradients, and out again."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")

from safetensors.torch import load_file  # noqa: E402

from convert.cli import main as convert  # noqa: E402
from jclip.features.source import ModelSource  # noqa: E402
from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.learned_prompts import Frame, Layout  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import in_memory  # noqa: E402
from jclip.weights.layouts import from_chinese_clip  # noqa: E402
from jclip.weights.layouts.keymap import apply  # noqa: E402
from tests.parity import chinese_clip  # noqa: E402
from tests.parity.chinese_clip import as_cn_clip, batch, texts, written_model  # noqa: E402


@pytest.fixture(scope="module", params=[0, 1])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chinese clip")
    return folder, written_model(folder, request.param, odd=request.param == 1), request.param


def test_features_and_every_token(case, close):
    folder, reference, seed = case
    model = ModelSource(folder).model
    pixels, ids = batch(reference, seed)
    with torch.no_grad():
        image = reference.get_image_features(torch.tensor(pixels)).pooler_output
        text, every = texts(reference, ids)
    taps = {}
    with jt.no_grad():
        got, ours = model.encode_image(pixels), model.encode_text(ids, taps=taps)
        pooled, dense = model.encode_text(ids, dense=True)
        same = model.encode_text(ids[[0, 0]])  # of one length: nothing is packed
    close(got.numpy(), image, "features", "Chinese-CLIP: image")
    close(ours.numpy(), text, "features", "Chinese-CLIP: text")
    close(normalise(ours).numpy(), torch.nn.functional.normalize(text, dim=-1), "features_normalised",
          "Chinese-CLIP: text, normalised")  # fmt: skip
    close(normalise(got).numpy(), torch.nn.functional.normalize(image, dim=-1), "features_normalised",
          "Chinese-CLIP: image, normalised")  # fmt: skip
    close(same.numpy(), text[[0, 0]], "features", "Chinese-CLIP: text of one length")
    assert np.array_equal(pooled.numpy(), ours.numpy())
    said = ids != 0
    projected = (every @ reference.text_projection.weight.T).detach().numpy()
    close(taps["text.block2"].numpy()[said], every.numpy()[said], "tokens", "Chinese-CLIP: every token")
    close(dense.numpy()[said], projected[said], "tokens", "Chinese-CLIP: every token, projected")
    assert not dense.numpy()[~said].any()


def test_gradients_of_all_parameters(case, close):
    folder, reference, seed = case
    model = ModelSource(folder).model
    pixels, ids = batch(reference, seed)
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((n, 14)).astype(np.float32) for n in (len(pixels), len(ids))]
    named = trainable(model)
    image, text = normalise(model.encode_image(pixels)), normalise(model.encode_text(ids))
    loss = (image * weights[0]).sum() + (text * weights[1]).sum() * model.logit_scale.exp()
    ours = dict(zip(named, jt.grad(loss, list(named.values())), strict=True))

    reference.zero_grad()
    image = torch.nn.functional.normalize(reference.get_image_features(torch.tensor(pixels)).pooler_output, dim=-1)
    text = torch.nn.functional.normalize(texts(reference, ids)[0], dim=-1)
    scale = reference.logit_scale.exp()
    ((image * torch.tensor(weights[0])).sum() + (text * torch.tensor(weights[1])).sum() * scale).backward()
    theirs = {k: in_memory(p.grad.numpy()) for k, p in reference.named_parameters()}
    wanted, report = apply(theirs, from_chinese_clip.HUGGING_FACE_RULES)
    assert not report.unknown and wanted.keys() == ours.keys()
    for key, gradient in ours.items():
        close(gradient.numpy(), wanted[key].read().reshape(tuple(gradient.shape)), "gradient_relative",
              "Chinese-CLIP: gradients, relative", relative=True)  # fmt: skip


def save_cn_clip(path, model, prefix="module.", flash=False):
    """A checkpoint as the authors' training saves it; flash: with packed projections."""
    state = as_cn_clip(model)
    if flash:
        state = chinese_clip.with_flash(state)
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]}
    saved = {"epoch": 3, "step": 7, "name": "toy", "state_dict": {prefix + k: v for k, v in state.items()}}
    torch.save({**saved, "optimizer": optimiser}, path)
    return state


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_authors_layout_in_and_out_again(tmp_path, seed, flash, close):
    reference = written_model(tmp_path, seed, text=64, heads=1)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "clip_cn_toy.pt"
    state = save_cn_clip(file, reference, flash=flash)
    own, back = tmp_path / "toy.safetensors", tmp_path / "back.pt"
    assert convert([str(file), str(own), "--vision-head-width", "7"]) == 0
    assert convert([str(own), str(back), "--to", "cn_clip"]) == 0
    saved = torch.load(back, weights_only=True)
    assert set(saved) == {"state_dict", "epoch", "step", "name"}
    wanted = as_cn_clip(reference) if flash else state
    assert saved["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(saved["state_dict"][k], v) for k, v in wanted.items())

    source = ModelSource(own)
    assert source.preprocess.resize == "squash" and source.config.activation == "quickgelu"
    pixels, ids = batch(reference, seed)
    with torch.no_grad(), jt.no_grad():
        image = reference.get_image_features(torch.tensor(pixels)).pooler_output
        close(source.model.encode_image(pixels).numpy(), image, "features", "Chinese-CLIP of cn_clip: image")
        close(
            source.model.encode_text(ids).numpy(), texts(reference, ids)[0], "features", "Chinese-CLIP of cn_clip: text"
        )


def test_transformers_reads_what_we_write_and_it_is_bit_for_bit_the_same(case, tmp_path):
    folder, reference, _ = case
    own, back = tmp_path / "toy.safetensors", tmp_path / "back"
    assert convert([str(folder), str(own)]) == 0
    for weights in (own, folder):
        assert convert([str(weights), str(back), "--to", "huggingface"]) == 0
        again = transformers.ChineseCLIPModel.from_pretrained(back)
        mine, theirs = (load_file(place / "model.safetensors") for place in (back, folder))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], v) for k, v in theirs.items())
        for mine, theirs in ((again.config.text_config, reference.config.text_config),
                             (again.config.vision_config, reference.config.vision_config)):  # fmt: skip
            for key in ("hidden_act", "layer_norm_eps", "num_attention_heads", "vocab_size", "pad_token_id"):
                assert getattr(mine, key, None) == getattr(theirs, key, None)
        assert (back / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
        words = transformers.BertTokenizer.from_pretrained(back)
        ids = words(["两只dogs的照片 [SEP]", "A photo"], padding="max_length", max_length=13)["input_ids"]
        mine = ModelSource(own).tokenize(["两只dogs的照片", "a Photo"])
        assert mine[1].tolist() == ids[1] and mine[0, 0] == ids[0][0] == 2


def test_check_asks_transformers(case, tmp_path, capsys):
    folder, _, _ = case
    assert convert([str(folder), str(tmp_path / "checked.safetensors"), "--check"]) == 0
    said = capsys.readouterr().out
    assert said.count("features differ by") == 2 and "BERT, width 20" in said and "wordpiece" in said


def test_learned_prompts_against_transformers(case, close):
    """Vectors among token embeddings, new ones before the second block: features, and their gradients."""
    folder, reference, seed = case
    model = ModelSource(folder).model
    frame = Frame(model, Layout.of(model, ["红 的 狗", "a", "绿 方"], 3))
    rng = np.random.default_rng(seed)
    deep = rng.standard_normal((2, 3, 20)).astype(np.float32)
    weights = rng.standard_normal((3, 14)).astype(np.float32)
    layout = Layout.of(model, ["红 的 狗", "a", "绿 方"], 3)
    lengths, bert = layout.ends + 1, reference.text_model
    assert lengths.tolist() == [9, 7, 8] and (layout.slots[:, 1:4] == [1, 2, 3]).all()
    for vectors in (deep[:1], deep):
        ours = jt.array(vectors)
        found = frame.features(ours if len(vectors) > 1 else ours[0])
        gradient = jt.grad((found * weights).sum(), ours).numpy()
        given = torch.tensor(vectors, requires_grad=True)
        x = bert.embeddings.word_embeddings(torch.tensor(layout.tokens).long())
        x = torch.cat([x[:, :1], given[0].expand(3, 3, 20), x[:, 4:]], dim=1)
        seen = torch.arange(x.shape[1]) < torch.tensor(lengths)[:, None]
        mask = torch.where(seen, 0.0, -1e30)[:, None, None, :]
        x = bert.embeddings(inputs_embeds=x)
        for i, layer in enumerate(bert.encoder.layer):
            if 0 < i < len(vectors):
                x = torch.cat([x[:, :1], given[i].expand(3, 3, 20), x[:, 4:]], dim=1)
            x = layer(x, mask)
            x = x[0] if isinstance(x, tuple) else x
        wanted = torch.nn.functional.normalize(reference.text_projection(x[:, 0]), dim=-1)
        (wanted * torch.tensor(weights)).sum().backward()
        close(found.numpy(), wanted.detach(), "features_normalised", "Chinese-CLIP: learned prompts")
        close(gradient, given.grad, "gradient_relative", "Chinese-CLIP: learned prompts, gradients", relative=True)
