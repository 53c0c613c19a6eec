"""Tokenizers of other families against transformers' on 2,000 texts of many scripts; what is no command; bad files."""

from __future__ import annotations

import base64
import builtins
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import CheckpointError, DataError, SetupError, UnknownName
from jclip.prompts import sentencepiece_model, tokenizer_json, vocabulary_folder
from jclip.prompts.character_table import CharacterTable
from jclip.prompts.text_cleaning import CLEANERS
from jclip.prompts.tokenizer import MERGES, Tokenizer, tokenizer
from jclip.prompts.vocabularies import KINDS, open_tokenizer, tokenizer_files
from tests.golden.inputs import HARD_STRINGS
from tests.golden.scripts import script_strings

transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")
MODELS = Path(__file__).parent.parent / "golden" / "sentencepiece"
TEXTS = [*HARD_STRINGS, *script_strings(2000, seed=11)]
GEMMA = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "bos_token": "<bos>",
         "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": int(1e30)}  # fmt: skip
SIGLIP = {"model_type": "siglip"}


@dataclass
class Tower:
    """What a tokenizer asks of its text tower."""

    vocab_size: int
    context_length: int = 64


@pytest.fixture(scope="module")
def wordpieces() -> list[str]:
    """A WordPiece vocabulary trained here."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained.train_from_iterator(
        script_strings(1500, seed=4),
        tokenizers.trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False),
    )
    ids = trained.get_vocab()
    return sorted(ids, key=ids.get)


def folder_of(path: Path, **files: object) -> Path:
    """A folder of files, whose names have `__` for a dot: bytes as they are, the rest as JSON."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def model(name: str) -> bytes:
    return (MODELS / f"{name}.model").read_bytes()


def pieces(name: str) -> sentencepiece_model.SentencePieces:
    return sentencepiece_model.read_sentence_pieces(model(name), name)


def scored(found: sentencepiece_model.SentencePieces) -> list[tuple[str, float]]:
    return list(zip(found.pieces, found.scores, strict=True))


def opened(folder: Path, size: int):
    return tokenizer_files(folder).open(Tower(size))


def compare(ours, reference, texts=TEXTS, length=64):
    """Every id of every row, padding too, where the reference cuts what is too long."""
    expected = reference(texts, max_length=length, padding="max_length", truncation=True)["input_ids"]
    found = ours(texts, length, truncate=True)
    assert found.dtype == np.int32
    for text, row, wanted in zip(texts, found.tolist(), expected, strict=True):
        assert row == wanted, text
    assert len({tuple(row) for row in expected}) > 0.7 * len(texts)


def bert(path: Path, wordpieces: list[str], **said: object) -> Path:
    return folder_of(
        path, vocab__txt="".join(f"{piece}\n" for piece in wordpieces).encode(), tokenizer_config__json=said
    )


@pytest.mark.parametrize(
    "said", [{}, {"do_lower_case": False, "strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_wordpiece_of_a_bare_vocabulary_equals_transformers(said, wordpieces, tmp_path):
    folder = bert(tmp_path, wordpieces, **said)
    if not said:
        (folder / "tokenizer_config.json").unlink()
    reference = transformers.BertTokenizer(vocab={p: i for i, p in enumerate(wordpieces)}, **said)
    ours = opened(folder, len(wordpieces))
    compare(ours, reference, length=52)
    assert (ours.kind, ours.vocab_size, ours.pad, ours.start, ours.end) == ("wordpiece", 800, 0, 2, 3)


def test_wordpiece_as_transformers_writes_it_equals_it(wordpieces, tmp_path):
    reference = transformers.BertTokenizer(vocab={p: i for i, p in enumerate(wordpieces)})
    reference.save_pretrained(tmp_path)
    compare(opened(tmp_path, 800), reference)


def t5():
    found = pieces("unigram")
    made = transformers.T5Tokenizer(vocab=scored(found), extra_ids=0, _spm_precompiled_charsmap=found.charsmap)
    return made, {"spiece__model": model("unigram"), "tokenizer_config__json": {"tokenizer_class": "T5Tokenizer"}}, 420


def xlm():
    found = pieces("fairseq")
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored(found)[3:], ("<mask>", 0.0)]
    made = transformers.XLMRobertaTokenizer(vocab=vocab, _spm_precompiled_charsmap=found.charsmap)
    return made, {"sentencepiece__bpe__model": model("fairseq")}, 402


def gemma():
    found = pieces("byte_pairs")
    merges = sentencepiece_model.tokenizer_of(found)["model"]["merges"]
    vocab = {piece: number for number, piece in enumerate(found.pieces)}
    made = transformers.Siglip2Tokenizer(
        vocab=vocab, merges=list(map(tuple, merges)), padding_side="right", add_eos_token=True, add_bos_token=False
    )
    made.add_tokens([transformers.AddedToken("[user]", normalized=False)])
    files = {"tokenizer__model": model("byte_pairs"), "tokenizer_config__json": GEMMA, "config__json": SIGLIP}
    return made, files, 640


FAMILIES = {"T5": t5, "XLM-R": xlm, "Gemma of SigLIP 2": gemma}
ENDS = {"T5": (0, None, 1), "XLM-R": (1, 0, 2), "Gemma of SigLIP 2": (0, None, 1)}  # pad, start, end


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["converted", "tokenizer.json"])
def test_sentencepiece_families_equal_transformers(family, form, tmp_path):
    reference, files, size = FAMILIES[family]()
    if form == "converted":
        folder_of(tmp_path, **files)
    else:
        reference.save_pretrained(tmp_path)
    ours = opened(tmp_path, size)
    compare(ours, reference)
    assert (ours.pad, ours.start, ours.end) == ENDS[family]
    assert (ours.kind, ours.vocab_size) == ("tokenizer.json", size)


def test_merges_equal_transformers(tmp_path):
    from transformers.tokenization_utils_base import generate_merges

    found = pieces("byte_pairs")
    normal = {p: n for n, (p, kind) in enumerate(zip(found.pieces, found.types, strict=True)) if kind == 1}
    merges = sentencepiece_model.tokenizer_of(found)["model"]["merges"]
    assert len(merges) > 100
    assert list(map(tuple, merges)) == generate_merges(normal)


def test_bytes_that_a_trainer_was_given_as_special_tokens_still_spell_letters(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    said = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<unk>", *said], show_progress=False
    )
    trained.train_from_iterator(["a red bird", "a green tree"], trainer)
    folder = folder_of(tmp_path, tokenizer__json=trained.to_str().encode())
    ours = opened(folder, trained.get_vocab_size())
    for text in ("a red, green tree!", "红鸟", "🐦"):
        assert ours.encode(text) == trained.encode(text).ids and trained.token_to_id("<unk>") not in ours.encode(text)
    assert trained.token_to_id("<0x41>") not in ours.encode("<0x41>")
    assert ours.encode("<0x41>") == [trained.token_to_id(f"<0x{ord(letter):02X}>") for letter in "<0x41>"]


def siglip_folder(path: Path) -> Path:
    said = {"tokenizer_class": "SiglipTokenizer", "pad_token": {"content": "</s>"}}
    return folder_of(path, spiece__model=model("unigram"), tokenizer_config__json=said, config__json=SIGLIP)


def test_siglip_equals_what_sentencepiece_gave(tmp_path):
    """Recorded by tests/golden/make_sentencepiece.py from transformers' SiglipTokenizer, which runs SentencePiece."""
    golden = json.loads((MODELS / "siglip.json").read_text())
    found = opened(siglip_folder(tmp_path), 420)(script_strings(2000, seed=11), 64, truncate=True)
    assert found[:5].tolist() == golden["first"]
    assert hashlib.sha256(found.tobytes()).hexdigest() == golden["sha256"]


def test_siglip_equals_sentencepiece_itself(tmp_path):
    """With the published normalization, of a quarter of a megabyte.

    Three equal letters in a row, of which one and two are pieces, have two ways of one score: SentencePiece's sums of 32
    bits decide there, the package's of 64 otherwise. Such rows hold the same ids in another order.
    """
    pytest.importorskip("sentencepiece", reason="not installed: pip install sentencepiece")
    from tests.golden.make_sentencepiece import UNIGRAM, trained

    data = trained(**UNIGRAM)
    folder = folder_of(tmp_path, spiece__model=data, config__json=SIGLIP)
    reference = transformers.SiglipTokenizer(str(folder / "spiece.model"))
    expected = np.array(reference(TEXTS, max_length=64, padding="max_length", truncation=True)["input_ids"])
    found = opened(folder, 420)(TEXTS, 64, truncate=True)
    other = (found != expected).any(1)
    assert other.sum() <= 4
    assert (np.sort(found[other], axis=1) == np.sort(expected[other], axis=1)).all()


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_cleaning_equals_open_clip(clean):
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="not installed: pip install '.[parity]'")
    reference = open_clip.get_clean_fn(clean)
    for text in TEXTS:
        assert CLEANERS[clean](text) == reference(text), text


def test_a_folder_of_open_clip_says_how_texts_are_cleaned(tmp_path):
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": "canonicalize"}}
    folder = folder_of(
        tmp_path, spiece__model=model("unigram"), open_clip_config__json={"model_cfg": {"text_cfg": text}}
    )
    ours = opened(folder, 420)
    assert (ours(["Snake_case, DOGS!"], 16) == ours(["snake case dogs"], 16)).all()
    folder_of(tmp_path, open_clip_config__json={"model_cfg": {"text_cfg": {"hf_tokenizer_name": "x"}}})
    ours = opened(folder, 420)
    assert (ours(["a&amp;b \n c"], 16) == ours(["a&b c"], 16)).all()
    assert (ours(["A"], 16) != ours(["a"], 16)).any()
    folder_of(tmp_path, open_clip_config__json={"model_cfg": {"text_cfg": {"vocab_size": 49408}}})
    assert tokenizer_files(folder) is None


SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<eos>", "<bos>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "＜/s＞"]


def all_families(path: Path, wordpieces: list[str]) -> dict[str, object]:
    """One tokenizer of each, opened from files."""
    found = {}
    for family, make in FAMILIES.items():
        reference, files, size = make()
        found[family] = opened(folder_of(path / family, **files), size)
        reference.save_pretrained(path / f"{family} saved")
        found[f"{family} saved"] = opened(path / f"{family} saved", size)
    found["SigLIP"] = opened(siglip_folder(path / "siglip"), 420)
    found["BERT"] = opened(bert(path / "bert", wordpieces), 800)
    return found


def test_special_tokens_that_a_text_spells_are_text(wordpieces, tmp_path):
    for family, ours in all_families(tmp_path, wordpieces).items():
        unknown = ours.encode("\U0001f9ff\U000e0041")
        commands = {ours.pad, ours.start, ours.end} - {None} - set(unknown)
        for text in [*SPECIAL, *(f"a{word}b {word}" for word in SPECIAL), "\uffff</s>", "\ufffe<eos>"]:
            ids = ours.encode(text)
            assert ids and not commands & set(ids), (family, text)
        plain = ours.encode("x /s y")
        assert len(ours.encode("x </s> y")) >= len(plain), family


def test_odd_texts_have_ids(wordpieces, tmp_path):
    for family, ours in all_families(tmp_path, wordpieces).items():
        rows = ours(["", " ", "\ud800x\udc00", "a" * 50_000, "\0", "\uffff"], 9, truncate=True)
        assert rows.shape == (6, 9) and (rows >= 0).all() and (rows < ours.vocab_size).all(), family
        assert ours("a cat", 16).shape == (1, 16)
        assert ours([], 5).shape == (0, 5)


def test_rows_end_where_padding_begins(wordpieces, tmp_path):
    for family, ours in all_families(tmp_path, wordpieces).items():
        texts = ["", "a photo of a cat", "dog " * 40]
        rows = ours(texts, 24, truncate=True)
        lengths = [len(ours.encode(text)) + (ours.start is not None) for text in texts]
        assert ours.ends(rows).tolist() == [min(length, 23) for length in lengths], family
        assert all(row[end] == ours.end for row, end in zip(rows, ours.ends(rows), strict=True))
        assert (rows[2, 0] == ours.start) or ours.start is None
    assert tokenizer().ends(tokenizer()(texts, 24, truncate=True)).tolist() == [1, 6, 23]


def test_rows_are_padded_on_the_side_that_the_folder_names(tmp_path):
    _, files, size = gemma()
    folder = folder_of(tmp_path, **files, special_tokens_map__json={"pad_token": "<pad>"})
    right = opened(folder, size)
    folder_of(tmp_path, tokenizer_config__json={**GEMMA, "padding_side": "left"})
    left = opened(folder, size)
    ids = [*right.encode("a cat"), right.end]
    assert right(["a cat"], 20)[0].tolist() == ids + [0] * (20 - len(ids))
    assert left(["a cat"], 20)[0].tolist() == [0] * (20 - len(ids)) + ids
    assert left.ends(left(["a cat", "cat"], 20)).tolist() == [19, 19]
    assert left.digest != right.digest


def test_start_and_end_are_what_the_folder_says(tmp_path):
    _, files, size = gemma()
    for start, end in [(True, True), (True, False), (False, False)]:
        said = {**GEMMA, "add_bos_token": start, "add_eos_token": end}
        ours = opened(folder_of(tmp_path, **{**files, "tokenizer_config__json": said}), size)
        assert (ours.start, ours.end) == (2 if start else None, 1 if end else None)
        ids = ours.encode("a cat")
        assert ours(["a cat"], 20)[0].tolist()[: len(ids) + start + end] == [*[2] * start, *ids, *[1] * end]


def test_a_long_text_is_an_error_that_names_it_unless_cut(wordpieces, tmp_path):
    ours = opened(bert(tmp_path, wordpieces), 800)
    text = "我 " * 60
    with pytest.raises(DataError, match=r"62 tokens is too long for context length 52: '我 我"):
        ours(["short", text], 52)
    cut = ours(text, 52, truncate=True)[0]
    assert (cut[0], cut[51]) == (2, 3) and set(cut[1:51]) == set(ours.encode("我"))
    assert ours("我 " * 50, 52)[0, 51] == 3  # fits exactly
    with pytest.raises(DataError, match="no room"):
        ours("x", 1)
    with pytest.raises(DataError, match="at most 100,000 letters"):
        ours("a" * 100_001, 52)


def test_clips_own_vocabulary_is_not_a_file(tmp_path):
    reference = transformers.CLIPTokenizer(vocab=tokenizer().ids(), merges=tokenizer().merges())
    reference.save_pretrained(tmp_path / "clip")
    assert (tmp_path / "clip" / "tokenizer.json").is_file()
    assert tokenizer_files(tmp_path / "clip") is None
    small = Tokenizer(merges=300)
    transformers.CLIPTokenizer(vocab=small.ids(), merges=small.merges()).save_pretrained(tmp_path / "small")
    assert tokenizer_files(tmp_path / "small") is None
    other = {piece: len(small.ids()) - 1 - number for piece, number in small.ids().items()}
    transformers.CLIPTokenizer(vocab=other, merges=small.merges()).save_pretrained(tmp_path / "other")
    assert tokenizer_files(tmp_path / "other").kind == "tokenizer.json"
    assert tokenizer_files(tmp_path) is None
    own = open_tokenizer("openai-bpe", b"", Tower(MERGES + 514))
    assert own is tokenizer(MERGES) and (own.kind, own.digest, own.pad) == ("openai-bpe", "openai-bpe", 0)


def test_digests_are_of_bytes_and_settings(wordpieces, tmp_path):
    file = tokenizer_files(bert(tmp_path, wordpieces))
    digests = {file.open(Tower(800)).digest, open_tokenizer(file.kind, file.data + b"a new one\n", Tower(801)).digest}
    digests.add(open_tokenizer(file.kind, file.data, Tower(800), {"do_lower_case": False}).digest)
    assert len(digests) == 3 and all(len(digest) == 64 for digest in digests)
    assert file.open(Tower(800)).digest in digests


def test_ids_beyond_the_embedding_are_out_of_reach(tmp_path):
    """SigLIP's multilingual weights have 250,000 rows, their vocabulary a hundred tokens more."""
    folder = folder_of(tmp_path, spiece__model=model("unigram"))
    ours, whole = opened(folder, 415), opened(folder, 420)
    assert ours.vocab_size == 415
    spelt = [piece.replace("▁", " ") for piece in pieces("unigram").pieces[410:]]
    assert {415, 416, 417, 418, 419} <= {i for text in spelt for i in whole.encode(text)}
    assert max(i for text in spelt for i in ours.encode(text)) < 415


def test_a_vocabulary_of_another_embedding_is_refused(wordpieces, tmp_path):
    file = tokenizer_files(bert(tmp_path, wordpieces))
    for size in (300, 786, 820):
        with pytest.raises(
            CheckpointError, match=f"has 800 tokens, the weights' embedding {size:,}: it must be the one"
        ):
            file.open(Tower(size))
    for size in (790, 800, 810):
        assert file.open(Tower(size)).vocab_size == min(size, 800)


WRONG = {
    "not JSON": (b"{", "not valid JSON"),
    "a list": (b"[]", "must hold a table"),
    "no UTF-8": (b"\xff\xfe\x00", "not valid JSON"),
    "deep": (b"[" * 100_000, "nested too deeply|not valid JSON"),
    "no model": (b"{}", "must hold a model"),
    "no vocabulary": (b'{"model": {"type": "BPE"}}', "must give each token an id"),
    "ids of text": (b'{"model": {"vocab": {"a": "b"}}}', "must give each token an id"),
    "negative": (b'{"model": {"vocab": {"a": -1}}}', "must give each token an id"),
    "unknown model": (b'{"model": {"type": "Magic", "vocab": {"a": 0}}}', "the package tokenizers .* can't read"),
    "post-processor": (b'{"model": {"vocab": {"a": 0}}, "post_processor": {"type": "X"}}', "template around one text"),
    "special id": (b'{"model": {"vocab": {"a": 0}}, "post_processor": {"type": "BertProcessing", "sep": ["x", 9],'
                   b' "cls": ["x", 0]}}', "must have ids below the embedding's 1, got 9"),
    "padding": (b'{"model": {"vocab": {"a": 0}}, "padding": {"pad_id": -4}}', "must have ids below"),
    "table": (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": {"type": "Precompiled",'
              b' "precompiled_charsmap": "AAAA"}}', "its table of characters must be whole"),
    "merges": (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}}', "merges must be pairs"),
    "moved": (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "b", "id": 0}]}',
              "must follow the vocabulary's"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_tokenizer_json_is_one_line(case):
    data, message = WRONG[case]
    with pytest.raises(CheckpointError, match=message) as error:
        open_tokenizer("tokenizer.json", data, Tower(1))
    assert "\n" not in str(error.value)


def test_a_damaged_vocabulary_is_one_line(tmp_path):
    for data, message in [
        (b"\xff\xfea", "line 1: must be UTF-8"),
        (b"[PAD]\n[CLS]\n[SEP]\n", r"lacks '\[UNK\]'"),
        (b"a\0b\n", "NUL"),
        (b"", "must have 1 to"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nb\n[UNK]\n", r"each piece once, got '\[UNK\]' on lines 2 and 6"),
    ]:
        (tmp_path / "vocab.txt").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            opened(tmp_path, 3)
    with pytest.raises(UnknownName, match="kind of tokenizer 'bpe'.*known: " + ", ".join(KINDS)):
        open_tokenizer("bpe", b"", Tower(3))
    for settings in ({"clean": "soap"}, {"lower_case": 1}, {"padding_side": "top"}):
        with pytest.raises(CheckpointError, match="the tokenizer's settings"):
            open_tokenizer("tokenizer.json", b"{}", Tower(3), settings)
    for settings in ({"pad_token": "<none>"}, {"start_token": "<none>"}):
        with pytest.raises(CheckpointError, match="no token '<none>'"):
            open_tokenizer("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', Tower(1), settings)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"do_lower_case": "no"}, "do_lower_case must be true or false, or null, got 'no'"),
        ({"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class must be a text"),
        ({"pad_token": 0}, "pad_token must be a text, or a table with one as its content, or null, got 0"),
        ({"sep_token": {"content": 3}}, "sep_token must be a text, or a table"),
        ({"padding_side": "top"}, "padding_side must be one of left, right, or null, got 'top'"),
        ({"add_eos_token": 1}, "add_eos_token must be true or false"),
        ({"unk_token": {"content": "[UNK]", "lstrip": False}, "do_lower_case": None, "model_max_length": 10**30}, ""),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_what_stands_beside_a_vocabulary_has_its_types(said, message, name, wordpieces, tmp_path):
    folder = bert(tmp_path, wordpieces)
    (folder / name).write_text(json.dumps(said))
    if not message:
        assert tokenizer_files(folder) is not None
        return
    with pytest.raises(CheckpointError) as raised:
        tokenizer_files(folder)
    assert message in str(raised.value) and str(folder / name) in str(raised.value)


def test_a_vocabulary_of_200_megabytes_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with open(tmp_path / "tokenizer.json", "wb") as f:
        f.truncate(200_000_000)
    monkeypatch.setattr(vocabulary_folder, "MOST_BYTES", 1 << 20)  # reading 128 MiB of zeros takes a while
    with pytest.raises(CheckpointError, match="must have 1 to .* bytes, got 200,000,000"):
        tokenizer_files(tmp_path)


def test_damaged_sentencepiece_models_are_one_line(tmp_path):
    good = model("unigram")
    for data, message in [
        (good[:-3], "no protocol buffer message"),
        (b"\x0a", "no protocol buffer message"),
        (b"\x0b\x00", "no protocol buffer message"),
        (b"\x80" * 30, "no protocol buffer message"),
        (b"\x08\x01", "got another protocol buffer"),
        (b"\x12\x02\x18\x01", "with pieces that differ, got 0"),
        (b"\x12\x01\x08", "no protocol buffer message"),
        (b"\x0a\x02\x08\x01", "got another protocol buffer"),
        (b"\x0a\x03\x0a\x01a" * 2, "with pieces that differ, got 2"),
        (b"\x0a\x03\x0a\x01\xff", "not UTF-8"),
        (b"\x0a\x02\x0a\x00", "1 to 1,024 characters, got 0"),
        (b"\x0a\x03\x0a\x01a" + b"\x12\x02\x18\x03", "got one of words"),
        (b"\x0a\x03\x0a\x01a" + b"\x12\x03\xc0\x02\x05", "unknown piece must be one of 1, got 5"),
        (b"\x0a\x03\x0a\x01a" + b"\x1a\x05\x12\x03abc", "table of characters must be whole"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "finite score"),
    ]:
        (tmp_path / "spiece.model").write_bytes(data)
        with pytest.raises(CheckpointError, match=message) as error:
            tokenizer_files(tmp_path)
        assert "\n" not in str(error.value)


def test_a_table_of_characters_that_leads_outside_is_refused():
    table = bytearray(pieces("unigram").charsmap)
    assert CharacterTable(bytes(table), "x")("ＡＦ ｶﾞ ½ e\u0301\u200b x") == "AF ガ 1⁄2 é x"
    for unit in (0xFFFFFFFF, 0x3FFFFC00, 0x80000000 + len(table)):
        table[4:8] = unit.to_bytes(4, "little")
        with pytest.raises(CheckpointError, match="leads outside of itself"):
            CharacterTable(bytes(table), "x")


def test_the_package_is_an_extra(wordpieces, tmp_path, monkeypatch):
    folder, found = bert(tmp_path, wordpieces), builtins.__import__

    def without(name, *rest, **options):
        if name.partition(".")[0] == "tokenizers":
            raise ImportError(name)
        return found(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"needs the package tokenizers: pip install 'jclip\[tokenizers\]'"):
        opened(folder, 800)


def test_help_does_not_load_the_package():
    lines = "import sys; import jclip.prompts.vocabularies; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines]).returncode == 0


def test_a_panic_of_the_package_is_an_error_of_one_line(monkeypatch):
    class Panic(BaseException):
        pass

    def panics():
        raise Panic("index out of bounds:\nthe length is 4")

    with pytest.raises(DataError, match=r"no: index out of bounds:\\nthe length"):
        tokenizer_json._guarded(panics, lambda said: DataError(f"no: {said}"))


def test_what_a_sentencepiece_table_gives_is_what_the_json_carries():
    spec = sentencepiece_model.tokenizer_of(pieces("unigram"))
    assert base64.b64decode(spec["normalizer"]["precompiled_charsmap"]) == pieces("unigram").charsmap
