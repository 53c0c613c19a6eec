"""Photos that are asked about, the head by the answers, audits, answers on file and concepts, on galleries without a model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from jclip.data.answer_files import PhotoAnswer, read_answers, rows_of
from jclip.errors import ConfigError, DataError
from jclip.features.concepts import read_concept, write_concept
from jclip.features.gallery import Gallery
from jclip.features.lesson import Lesson
from jclip.features.teaching import Teacher
from jclip.functional.audited_shares import right_bounds
from jclip.prompts.query_terms import parse_terms
from jclip.readers import safetensors
from tests.made_galleries import WIDTH, made_gallery, unit_rows

ROWS = 260
TEXT = unit_rows(1, seed=9)[0]


def clustered() -> tuple[np.ndarray, np.ndarray]:
    """Photos of which 40 are right; the text points to 20 of these and 60 others."""
    draw = np.random.default_rng(0)
    own, other = unit_rows(2, seed=4)
    centres = np.zeros((ROWS, WIDTH), np.float32)
    centres[:40] += 0.7 * own
    centres[:20] += 0.4 * TEXT
    centres[40:100] += 0.5 * TEXT + 0.4 * other
    x = centres + 0.15 * draw.standard_normal((ROWS, WIDTH)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.arange(ROWS) < 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gallery of these photos, whose files are there, and the text as a term."""
    root = tmp_path_factory.mktemp("photos")
    features, right = clustered()
    folder = made_gallery(root / "g", features)
    for i in range(ROWS):
        (root / f"photo {i}.png").touch()
    np.save(root / "text.npy", TEXT)
    return folder, parse_terms([f"@{root}/text.npy"]), right


def taught(teacher: Teacher, right: np.ndarray, answers: int) -> Teacher:
    while len(teacher.teaching) < answers:
        for row in teacher.round()[: answers - len(teacher.teaching)]:
            teacher.answer(row, "yes" if right[row] else "no")
    return teacher


def average_precision(teacher: Teacher, right: np.ndarray) -> float:
    ranks = np.flatnonzero(right[teacher.order()])
    return float(((np.arange(len(ranks)) + 1) / (ranks + 1)).mean())


def test_without_answers_the_order_is_searchs(made):
    folder, query, _ = made
    gallery = Gallery.open(folder)
    lesson = Lesson(gallery, query)
    found = gallery.search(query, ROWS)
    assert lesson.teacher.order().tolist() == [hit.row for hit in found.hits]
    assert lesson.teacher.above() == sum(hit.above for hit in found.hits)
    lesson.answer(5, "unsure")
    assert lesson.teacher.order().tolist() == [hit.row for hit in found.hits]


def test_answers_teach_and_none_is_asked_twice(made):
    features, right = clustered()
    teacher = Teacher([features[:100], features[100:]], TEXT)
    before = average_precision(teacher, right)
    taught(teacher, right, 30)
    assert len(teacher.teaching) == 30 == len(teacher.log)
    assert before < 0.5 and average_precision(teacher, right) > 0.9
    assert not {*teacher.round()} & {*teacher.teaching}


def test_a_round_is_best_and_unsure_in_turn_and_all_photos_come_up():
    features, _ = clustered()
    teacher = Teacher([features], TEXT)
    shown = teacher.round(12)
    order, far = teacher.order().tolist(), np.abs(teacher.cosines() - teacher.head.threshold)
    assert shown[::2] == order[:6]
    assert shown[1::2] == [row for row in np.argsort(far, kind="stable").tolist() if row not in order[:6]][:6]
    assert teacher.round(12, lambda row: row % 2 == 0) != shown and all(
        r % 2 == 0 for r in teacher.round(12, lambda r: r % 2 == 0)
    )
    seen = set()
    while rows := teacher.round(50):
        assert not seen & {*rows}
        seen |= {*rows}
        for row in rows:
            teacher.answer(row, "unsure")
    assert len(seen) == ROWS


def test_photos_that_are_nearly_the_same_stand_in_a_round_once():
    features, _ = clustered()
    copies = np.concatenate([features[:1]] * 40 + [features])
    shown = Teacher([copies], features[0]).round(12)
    assert sum(row <= 40 for row in shown) == 1 and len(shown) == 12
    assert len(Teacher([np.concatenate([features[:1]] * 9)], TEXT).round(12)) == 9  # where there are no others they do


def test_the_last_answer_counts_in_any_order_of_the_others_and_can_be_taken_back():
    features, _ = clustered()
    first, second = Teacher([features], TEXT), Teacher([features], TEXT)
    for row, answer in ((1, "no"), (50, "no"), (2, "yes"), (1, "yes")):
        first.answer(row, answer)
    for row, answer in ((2, "yes"), (1, "yes"), (50, "no")):
        second.answer(row, answer)
    assert (first.head.vector == second.head.vector).all() and first.head.bias == second.head.bias
    first.undo()
    assert first.teaching == {1: "no", 50: "no", 2: "yes"} and first.count("yes") == 1
    with pytest.raises(DataError, match=r"row 260 must be in \[0, 259\]"):
        first.answer(ROWS, "yes")
    with pytest.raises(DataError, match="there must be photos"):
        Teacher([features[:0]], TEXT)
    lost = features.copy()
    lost[7, 3] = np.nan
    with pytest.raises(DataError, match="damaged"):
        Teacher([lost], TEXT).cosines()


def test_an_audit_is_a_random_sample_and_teaches_only_once_others_follow():
    features, right = clustered()
    teacher = taught(Teacher([features], TEXT, seed=3), right, 24)
    head, known = teacher.head, dict(teacher.teaching)
    rows = teacher.audit_round(40)
    assert (
        len({*rows}) == 40
        and not {*rows} & {*known}
        and rows == taught(Teacher([features], TEXT, seed=3), right, 24).audit_round(40)
    )
    for row in rows[:15]:
        teacher.answer(row, "yes" if right[row] else "no", audit=True)
    assert teacher.audit_round(40) == rows[15:] and teacher.head is head
    for row in rows[15:]:
        teacher.answer(row, "yes" if right[row] else "no", audit=True)
    found, above = teacher.audit(), teacher.cosines() > head.threshold
    assert found.asked == 40 and not teacher.audit_round(40)
    free = [row for row in range(ROWS) if row not in known]
    asked = [row for row in rows if above[row]]
    low, high = right_bounds(sum(above[free]), len(asked), int(right[asked].sum()))
    mine = sum(right[row] and above[row] for row in known)
    assert found.precision.low == pytest.approx((mine + low) / above.sum())
    assert found.precision.high == pytest.approx((mine + high) / above.sum())
    assert found.precision.low <= right[above].mean() <= found.precision.high
    assert found.recall.low <= right[above].sum() / 40 <= found.recall.high
    teacher.answer(free[0], "no")
    assert not teacher.audited and len(teacher.teaching) >= 64 and teacher.head is not head


def test_an_audit_asks_elsewhere_where_a_stratum_is_small():
    features, _ = clustered()
    teacher = Teacher([features[:30]], TEXT)
    assert len(teacher.audit_round(40)) == 30
    assert teacher.audit().precision.value is None or teacher.above() == 0


def test_answers_survive_and_go_on(made, tmp_path):
    folder, query, right = made
    gallery, file = Gallery.open(folder), tmp_path / "a.jsonl"
    lesson = Lesson(gallery, query, file)
    for row in lesson.round():
        lesson.answer(row, "yes" if right[row] else "no")
        again = Lesson(gallery, query, file)  # as after a kill: each answer is whole in the file
        assert again.teacher.log == lesson.teacher.log
    lesson.answer(lesson.audit_round(8)[0], "no", audit=True)
    again = Lesson(gallery, query, file)
    assert again.teacher.log == lesson.teacher.log and again.teacher.audited
    assert (again.teacher.head.vector == lesson.teacher.head.vector).all()
    one, two = tmp_path / "1.concept", tmp_path / "2.concept"
    write_concept(one, lesson.concept())
    write_concept(two, again.concept())
    assert one.read_bytes() == two.read_bytes()
    lesson.undo()
    assert Lesson(gallery, query, file).teacher.log == again.teacher.log[:-1]
    with pytest.raises(ConfigError, match="another file by --answers"):
        Lesson(gallery, parse_terms(["row:3"]), file)
    other = made_gallery(tmp_path / "other", unit_rows(40), identity=("1" * 64, {}, "fp32"))
    with pytest.raises(ConfigError, match="another model"):
        Lesson(Gallery.open(other), query, file)


def test_answers_about_photos_that_are_gone_or_changed_do_not_teach(made, tmp_path):
    folder, query, _ = made
    file = tmp_path / "a.jsonl"
    lesson = Lesson(Gallery.open(folder), query, file)
    for row, answer in ((3, "yes"), (9, "no"), (200, "no")):
        lesson.answer(row, answer)
    features, _ = clustered()
    rows = [{"path": f"photo {i}.png", "size": i, "mtime": i, "sha256": f"{i:064x}"} for i in range(ROWS)]
    rows[200]["sha256"] = "f" * 64
    later = made_gallery(tmp_path / "photos", features[4:], rows[4:])
    lesson = Lesson(Gallery.open(later), query, file)
    assert lesson.lost == 2 and lesson.teacher.teaching == {5: "no"}
    lesson.answer(0, "yes")
    assert len(read_answers(file).answers) == 4  # what was lost stays on file
    assert rows_of([PhotoAnswer("photo 7.png", "yes"), PhotoAnswer("x", "no")], rows) == [7, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"photo": "a"}', "answer must be yes, no or unsure, got None"),
        ('{"photo": "a", "answer": "maybe"}', "line 1: answer must be"),
        ('\n{"answer": "yes"}', "line 2: must name a photo"),
        ("yes", "must be like"),
        ("[" * 5000, "must be like"),
        ('{"format": "x"}', "must be of the format jclip-answers"),
        ('{"photo": "a", "answer": "yes", "row": "0"}', "row must be an integer"),
        ('{"photo": "a", "answer": "yes", "audit": 1}', "audit true or false"),
    ],
)
def test_a_wrong_answer_file_is_named_by_its_line(tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(file)


def test_scripts_need_photo_and_answer_alone(made, tmp_path):
    folder, query, _ = made
    file = tmp_path / "a.jsonl"
    lines = [
        {"photo": "photo 3.png", "answer": "y"},
        {"photo": "photo 9.png", "answer": "n"},
        {"photo": "photo 8.png", "answer": "?"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Lesson(Gallery.open(folder), query, file).teacher.teaching == {3: "yes", 9: "no", 8: "unsure"}


def test_a_concept_is_read_back_and_searched_with_its_own_line(made, tmp_path):
    folder, query, right = made
    gallery = Gallery.open(folder)
    lesson = Lesson(gallery, query)
    taught(lesson.teacher, right, 30)
    file = tmp_path / "a, b.concept"
    write_concept(file, lesson.concept("my thing"))
    found = read_concept(file)
    assert (found.name, found.answers["yes"] + found.answers["no"], found.rows) == ("my thing", 30, ROWS)
    assert (found.head.vector == lesson.teacher.head.vector).all() and found.head.bias == lesson.teacher.head.bias
    for term in (f"concept:{file}", f"@{file}"):
        hits = gallery.search([term], ROWS, cut=True).hits
        assert [hit.row for hit in hits] == lesson.teacher.order()[: lesson.teacher.above()].tolist()
        assert len(gallery.search([term], ROWS, cut=True, line=-9.0).hits) == ROWS
    mixed = gallery.search([f"@{file}", "-", "row:3"], 5)
    assert mixed.hits[0].row != 3
    for word in ("concept:", "2:concept: "):
        with pytest.raises(ConfigError, match="must be followed by a file"):
            gallery.search(word)


def test_foreign_and_damaged_concepts_are_refused_in_one_line(made, tmp_path):
    folder, query, _ = made
    gallery, file = Gallery.open(folder), tmp_path / "x.concept"
    concept = Lesson(gallery, query).concept()
    write_concept(file, replace(concept, identity=["1" * 64, {}, "fp32"]))
    with pytest.raises(ConfigError, match="needs the same weights"):
        gallery.search(f"@{file}")
    narrow = made_gallery(tmp_path / "narrow", unit_rows(30, width=7), identity=("1" * 64, {}, "fp32"))
    with pytest.raises(ConfigError, match=r"\(23 dimensions\) and needs the same .* \(7\)"):
        Gallery.open(narrow).search(f"@{file}")
    write_concept(file, concept)
    whole = file.read_bytes()
    for at in (9, 40, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match="must be a concept as"):
            read_concept(file)
    file.write_bytes(whole[:-30])
    with pytest.raises(DataError, match="must be a concept as"):
        read_concept(file)
    for wrong in ({}, {"concept": "{}"}, {"concept": "[1]"}, {"concept": '{"format": "jclip-concept", "version": 9}'}):
        safetensors.write(file, {"vector": TEXT}, wrong)
        with pytest.raises(DataError, match="must be a concept"):
            read_concept(file)
    said = json.loads(_metadata(whole))
    good = {"vector": TEXT, "text": TEXT, "scale_and_bias": np.array([1.0, 0.0])}
    safetensors.write(file, good, {"concept": json.dumps(said)})
    assert read_concept(file).name == concept.name  # so that what follows is refused for what is wrong in it
    wide = np.full(65537, 65537**-0.5, np.float32)
    for changed, message in (
        ({"vector": 2 * TEXT}, "a vector that is not of length one"), ({"text": TEXT[:-1]}, "arrays of "),
        ({"text": TEXT + np.float32(np.inf)}, "not of length one"), ({"vector": TEXT[None], "text": TEXT[None]}, "a vector of"),
        ({"vector": TEXT[:0], "text": TEXT[:0]}, "a vector of"), ({"vector": wide, "text": wide}, "a vector of"),
        ({"scale_and_bias": np.array([0.0, 1.0])}, "not of length one"),
        ({"scale_and_bias": np.array([np.inf, 1.0])}, "numbers that are not finite"),
        ({"scale_and_bias": np.array([1.0, np.nan])}, "numbers that are not finite"),
    ):  # fmt: skip
        safetensors.write(file, {**good, **changed}, {"concept": json.dumps(said)})
        with pytest.raises(DataError, match=f"must be a concept as .*{message}"):
            read_concept(file)
    for name, value, message in (("name", " ", "texts"), ("identity", [], "an identity"), ("audit", 3, "tables"),
                                 ("strange", 1, "strange")):  # fmt: skip
        safetensors.write(file, good, {"concept": json.dumps({**said, name: value})})
        with pytest.raises(DataError, match=f"must be a concept as .*{message}"):
            read_concept(file)
    with pytest.raises(DataError, match="no such concept"):
        read_concept(tmp_path / "none.concept")


def _metadata(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]["concept"]
