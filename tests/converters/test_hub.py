"""Weights by name: a hub on loopback with folders in three layouts, fetched, converted, and loaded."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from convert.cli import main
from jclip.features.loading import load
from jclip.runtime import jt
from tests.toys import TOY_RESNET, TOY_VIT, toy_batch, toy_file

ROOT = Path(__file__).parents[2]
pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as downloads ask for: files of folders below `root`, by owner/name."""

    root: Path

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        owner, name, _, _, file = (
            self.path.lstrip("/").split("/", 4) if self.path.count("/") > 4 else ("", "", "", "", "")
        )
        place = self.root / owner / name / file
        if not place.is_file():
            known = owner and (self.root / owner / name).is_dir()
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = place.read_bytes()
        self.send_response(200)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        for key, value in (("X-Repo-Commit", "c" * 40), ("ETag", etag), ("Content-Length", len(data))):
            self.send_header(key, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Runs a command in a process of its own, as huggingface_hub reads its settings when it is imported."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    for config, to, name in ((TOY_VIT, "open_clip", "mine/open"), (TOY_VIT, "huggingface", "mine/hugging")):
        assert main([str(toy_file(root, config)), str(root / name), "--to", to]) == 0
    assert main([str(toy_file(root, TOY_RESNET)), str(root / "mine" / "resnet"), "--to", "open_clip"]) == 0
    shard(root / "mine" / "hugging", root / "mine" / "shards")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"root": root}))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess:
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home), **settings}
        command = [sys.executable, "-m", "jclip.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)

    run.root = root
    yield run
    server.shutdown()
    server.server_close()


def shard(folder: Path, out: Path) -> None:
    """The same weights in two files and an index."""
    from jclip.readers import read_weights, safetensors

    out.mkdir()
    arrays = {k: t.read() for k, t in read_weights(folder / "model.safetensors").items()}
    names, placed = sorted(arrays), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        safetensors.write(out / file, {k: arrays[k] for k in part})
        placed |= dict.fromkeys(part, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    for said in ("config.json", "preprocessor_config.json"):
        (out / said).write_bytes((folder / said).read_bytes())


def features_of(path) -> np.ndarray:
    model, _ = load(path)
    pixels, _ = toy_batch(model.config)
    with jt.no_grad():
        return model.encode_image(pixels).numpy()


@pytest.mark.parametrize("name", ["mine/open", "mine/hugging", "mine/shards", "mine/resnet"])
def test_a_repository_is_fetched_and_converted(name, hub, tmp_path, close):
    done = hub("convert", f"hf-hub:{name}", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    config = TOY_RESNET if "resnet" in name else TOY_VIT
    close(features_of(tmp_path / "out"), features_of(toy_file(tmp_path, config)), "kernel")
    again = hub("inspect", f"hf-hub:{name}", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.returncode == 0 and "activation   quickgelu" in again.stdout, again.stderr


def test_a_shard_that_the_repository_lacks_is_named(hub):
    shard(hub.root / "mine" / "hugging", hub.root / "mine" / "lost")
    (hub.root / "mine" / "lost" / "model-00002-of-00002.safetensors").unlink()
    done = hub("inspect", "hf-hub:mine/lost")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names" in done.stderr


def test_open_clips_names_are_looked_up(hub):
    """`architecture/tag` becomes the hub's repository, which this hub lacks: its name is in the message."""
    done = hub("inspect", "ViT-bigG-14-quickgelu/metaclip_2_5b")
    assert done.returncode == 2 and "hf-hub:timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    unknown = hub("inspect", "ViT-B-32/laion2b_s34b_b79")
    assert (
        unknown.returncode == 2 and "nor a model's name, did you mean 'ViT-B-32/laion2b_s34b_b79k'?" in unknown.stderr
    )


@pytest.mark.parametrize("prefix", ["module.", "module.clip_model."])
def test_chinese_clip_as_modelscope_has_it(prefix, tmp_path, monkeypatch, close):
    """pytorch_model.bin with cn_clip's names, those of a fine-tuned model, too, and its vocabulary."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.hubs import LoopbackHub
    from tests.parity import chinese_clip as written

    model = written.written_model(tmp_path / "reference", 0, text=64, heads=1)
    folder = tmp_path / "root" / "damo" / "clip_zh"
    folder.mkdir(parents=True)
    state = {f"{prefix}{name}": value for name, value in written.as_cn_clip(model).items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_bytes((tmp_path / "reference" / "vocab.txt").read_bytes())
    for said in ("configuration.json", "vision_model_config.json", "text_model_config.json"):
        (folder / said).write_text('{"embed_dim": 14}')
    with LoopbackHub(tmp_path / "root") as hub:
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "scope"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        out = tmp_path / "out.safetensors"
        assert main(["ms:damo/clip_zh", str(out), "--vision-head-width", "7"]) == 0
    pixels, ids = written.batch(model, 0)
    ours, _ = load(out)
    with torch.no_grad(), jt.no_grad():
        image = model.get_image_features(torch.tensor(pixels)).pooler_output
        close(ours.encode_image(pixels).numpy(), image, "features", "Chinese-CLIP of ModelScope: image")
        close(
            ours.encode_text(ids).numpy(), written.texts(model, ids)[0], "features", "Chinese-CLIP of ModelScope: text"
        )


def test_fg_clip_by_the_lists_name(tmp_path, close):
    """The list's name of a repository, its configuration, its tokenizer, and one of three ways to read texts."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.hubs import LoopbackHub
    from tests.parity import test_fg_clip as written

    (tmp_path / "root" / "qihoo360").mkdir(parents=True)
    theirs, tensors = written.fg_clip_folder(tmp_path / "root" / "qihoo360" / "fg-clip2-base", 0)
    with LoopbackHub(tmp_path / "root") as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "convert", "FG-CLIP2-base/fgclip2", str(tmp_path / "out"), "--texts", "long"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pixels, ids = written.batch("long", 0)
    ours, _ = load(tmp_path / "out")
    with torch.no_grad(), jt.no_grad():
        image = written.photos_as_authors(theirs, pixels)
        text = written.texts_as_authors(theirs, tensors, torch.tensor(ids).long(), "long")
        close(ours.encode_image(pixels).numpy(), image, "features", "FG-CLIP 2 of the hub: image")
        close(ours.encode_text(ids).numpy(), text, "features", "FG-CLIP 2 of the hub: text")


def test_without_a_mirror_the_hubs_own_address_is_asked():
    """In a process that has loaded nothing else: the package's parts are not there until they are imported."""
    code = "from jclip.weights.hugging_face_hub import HuggingFaceHub as H; print(H('hf-hub:a/b', 'a/b').place)"
    own = {key: value for key, value in os.environ.items() if key != "HF_ENDPOINT"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.stdout.strip() == "https://huggingface.co", done.stderr
