"""Trains the small SentencePiece models of the tests, and records what SentencePiece makes of their texts.

`pip install sentencepiece`, then `python -m tests.golden.make_sentencepiece`. Nothing in them is anybody else's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import transformers

from tests.golden.scripts import script_strings

FOLDER = Path(__file__).parent / "sentencepiece"
TEXTS = script_strings(2000, seed=11)
# Characters and what replaces them, in hexadecimal: a case of each kind, for a table of a few kilobytes.
RULES = [
    ("Ａ", "A"), ("Ｆ", "F"), ("Ｌ", "L"), ("１", "1"), ("e\u0301", "é"), ("ﬁ", "fi"), ("½", "1\u20442"), ("\t", " "),
    ("\n", " "), ("\u3000", " "), ("▁", " "), ("\u200b", ""), ("ｶﾞ", "ガ"), ("ｶ", "カ"), ("ﷺ", "صلى"),
]  # fmt: skip
UNIGRAM = {"vocab_size": 420, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
FAIRSEQ = {"vocab_size": 400, "model_type": "unigram"}
BYTE_PAIRS = {
    "vocab_size": 640, "model_type": "bpe", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True,
    "eos_piece": "<eos>", "bos_piece": "<bos>", "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": False, "user_defined_symbols": ["[user]"],
}  # fmt: skip


def trained(**options: object) -> bytes:
    """A model of other texts than those that it is compared on."""
    out = io.BytesIO()
    texts = [text for text in script_strings(4000, seed=12) if text.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, minloglevel=2, num_threads=1,
        character_coverage=0.985, **options,
    )  # fmt: skip
    return out.getvalue()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    lines = ["\t".join(" ".join(f"{ord(c):X}" for c in part) for part in rule) for rule in RULES]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # models hold the file's name
        Path("rules.tsv").write_text("\n".join(lines) + "\n")
        own = {"normalization_rule_tsv": "rules.tsv"}
        for name, options in (("unigram", UNIGRAM | own), ("fairseq", FAIRSEQ | own), ("byte_pairs", BYTE_PAIRS)):
            (FOLDER / f"{name}.model").write_bytes(trained(**options))
    siglip = transformers.SiglipTokenizer(str(FOLDER / "unigram.model"))
    ids = siglip(TEXTS, max_length=64, padding="max_length", truncation=True)["input_ids"]
    digest = hashlib.sha256(np.array(ids, np.int32).tobytes()).hexdigest()
    (FOLDER / "siglip.json").write_text(json.dumps({"sha256": digest, "first": ids[:5]}) + "\n")


if __name__ == "__main__":
    main()
