"""SSA and MSA on toy performance functions whose peak is known. Without Jittor."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from jclip.errors import ConfigError, DataError, UnknownName
from jclip.train.curriculum_plan import plan_curriculum, plan_rows
from jclip.train.curriculum_search import Search, SearchSettings, Selection, climb, msa, ssa
from jclip.train.curriculum_state import STATE, TrainedRun


class Toy:
    """Rows are (source, number, quality in [0, 1]); a measurer reads the quality, a training's accuracy has one peak.

    Accuracy: mean quality times a factor that grows with the number of rows, so that neither all rows nor the few best win.
    """

    def __init__(self, stop_after: int = 10**9, sight: dict[str, float] | None = None):
        self.calls: list[tuple[str, int, bool]] = []
        self.scored: list[tuple[str, int]] = []
        self.stop_after, self.sight = stop_after, sight or {}

    def train(self, rows, key, full):
        if len(self.calls) + len(self.scored) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((key, len(rows), full))
        return TrainedRun(accuracy_of(rows), f"run of {rows[0][0]}")

    def score(self, measurer, rows):
        if len(self.calls) + len(self.scored) >= self.stop_after:
            raise KeyboardInterrupt
        self.scored.append((measurer.run, len(rows)))
        sharp = self.sight.get(measurer.run.split()[-1], 1.0)
        return [sharp * row[2] + (1 - sharp) * 0.5 for row in rows]


def accuracy_of(rows) -> float:
    quality = np.array([row[2] for row in rows])
    return float(quality.mean() * len(rows) / (len(rows) + 120))


def rows_of(source, count=200, seed=0, power=1.0):
    rng = np.random.default_rng(seed)
    return [(source, i, float(q)) for i, q in enumerate(rng.random(count) ** power)]


def best_by_hand(rows, thresholds):
    kept = {h: [r for r in rows if r[2] > h] for h in thresholds}
    return max((h for h in kept if kept[h]), key=lambda h: (accuracy_of(kept[h]), -h))


THRESHOLDS = [round(k / 10, 9) for k in range(10)]


@pytest.mark.parametrize("peak", THRESHOLDS)
@pytest.mark.parametrize("start", [0.0, 0.5, 0.9])
def test_climbing_finds_a_single_peak_and_tries_no_more_than_the_way_there(peak, start):
    tried: dict[float, float] = {}
    calls = []

    def evaluate(h):
        calls.append(h)
        return 1 - abs(h - peak)

    assert climb(evaluate, SearchSettings(start=start), tried) == peak
    low, high = min(start, peak), max(start, peak)
    beyond = [h for h in (low - 0.1, high + 0.1) if -1e-9 <= h <= 0.9 + 1e-9]
    assert len(calls) == len(set(calls)) == len(tried) == round((high - low) * 10) + 1 + len(beyond)


def test_climbing_prefers_the_smaller_of_equal_neighbours_and_stays_without_gain():
    tried: dict[float, float] = {}
    assert climb(lambda h: {0.5: 0.1, 0.4: 0.3, 0.6: 0.3, 0.3: 0.2}[h], SearchSettings(), tried) == 0.4
    assert [*tried] == [0.5, 0.4, 0.6, 0.3]
    assert climb(lambda h: 0.7, SearchSettings(), {}) == 0.5
    assert climb(lambda h: 0.5 - h / 10, SearchSettings(min_gain=0.02), {}) == 0.5
    assert climb(lambda h: 0.5 - h / 10, SearchSettings(), {}) == 0.0


def test_thresholds_without_rows_are_left_towards_smaller_ones():
    tried: dict[float, float] = {}
    assert climb(lambda h: -np.inf if h > 0.25 else h, SearchSettings(), tried) == 0.2
    assert 0.3 in tried and 0.1 in tried


def test_ssa_keeps_what_the_best_threshold_keeps():
    rows, toy = rows_of("template"), Toy()
    found = ssa(Search({"template": rows}, toy.train, toy.score))
    best = best_by_hand(rows, THRESHOLDS)
    assert 0.1 < best < 0.5 and found.stages[0].threshold == best and found.complete
    assert found.rows == [r for r in rows if r[2] > best]
    assert found.trained.accuracy == accuracy_of(found.rows) > found.baseline["template"] == accuracy_of(rows)
    steps = round((0.5 - best) * 10)
    assert len(toy.calls) == found.trainings == 1 + steps + 3 and len(toy.scored) == 1


def test_ssa_keeps_all_rows_where_no_threshold_is_better():
    rows = [("s", i, 0.5 + i / 1000) for i in range(50)]
    toy = Toy()
    found = ssa(Search({"s": rows}, toy.train, toy.score, SearchSettings(start=0.52, step=0.02, low=0.5, high=0.6)))
    assert found.rows == rows and not found.stages[0].used and found.stages[0].added == 50


def test_equal_selections_are_trained_once():
    rows = [("s", i, 0.95) for i in range(10)] + [("s", 10, 0.05)]
    toy = Toy()
    found = ssa(Search({"s": rows}, toy.train, toy.score))
    assert len(toy.calls) == 2 and found.rows == rows[:10]  # all rows; above .4, .5 and .6 alike


def test_a_short_search_trains_the_winner_at_full_length():
    toy = Toy()
    found = ssa(Search({"s": rows_of("s")}, toy.train, toy.score, SearchSettings(proxy=True)))
    assert [full for *_, full in toy.calls] == [False] * (len(toy.calls) - 1) + [True]
    assert toy.calls[-1][1] == len(found.rows) and len({key for key, *_ in toy.calls}) == len(toy.calls)


def test_folds_score_rows_by_networks_that_never_saw_them():
    rows, learned = rows_of("s", 60), []

    def score(measurer, scored):
        learned.append((int(measurer.run), len(scored)))
        return [row[2] for row in scored]

    def train(given, key, full):
        return TrainedRun(accuracy_of(given), str(len(given)))

    search = Search({"s": rows}, train, score, SearchSettings(folds=3), group=lambda row: str(row[1] // 4))
    assert np.array_equal(search.reliability("s", "s"), [row[2] for row in rows])
    assert len(learned) == 3 and sum(n for _, n in learned) == 60 and all(a + n == 60 for a, n in learned)


def sources():
    return {
        "template": rows_of("template", 120, 1),
        "relation": rows_of("relation", 90, 2),
        "bad": rows_of("bad", 80, 3, 9.0),
    }


def test_msa_chooses_measurers_and_thresholds_and_leaves_out_what_does_not_help():
    toy = Toy(sight={"template": 0.0, "bad": 0.2})  # only relation's network tells rows apart
    found = msa(Search(sources(), toy.train, toy.score))
    assert [s.source for s in found.stages] == ["template", "relation", "bad"]
    assert found.stages[0].measurer == "relation" and found.stages[0].threshold == best_by_hand(
        sources()["template"], THRESHOLDS
    )
    assert found.stages[1].used and found.stages[1].accuracy > found.stages[0].accuracy > max(found.baseline.values())
    assert found.trained.accuracy == accuracy_of(found.rows) == max(s.accuracy for s in found.stages if s.used)
    assert len(toy.scored) == 9 and len(toy.calls) == found.trainings == len({key for key, *_ in toy.calls})
    held = {name: len(places) for name, places in found.kept.items()}
    assert held == {s.source: s.added for s in found.stages if s.used}


def test_msa_skips_a_source_that_lowers_the_accuracy():
    good = {"good": [("good", i, 0.95) for i in range(100)], "bad": [("bad", i, 0.1) for i in range(50)]}
    toy = Toy()
    settings = SearchSettings(start=0.0, low=0.0, high=0.0)
    found = msa(Search(good, toy.train, toy.score, settings))
    assert [s.used for s in found.stages] == [True, False] and found.rows == good["good"]
    assert [s.used for s in msa(Search(good, toy.train, toy.score, settings), ["bad", "good"]).stages] == [True, True]


def test_of_equal_measurers_a_sources_own_scores_it_and_a_source_without_gain_stays_out():
    toy = Toy()  # all measurers see alike
    found = msa(Search(sources(), toy.train, toy.score))
    assert [s.measurer for s in found.stages] == [s.source for s in found.stages]
    assert all(len({*s.measurers.values()}) == 1 and len(s.measurers) == 3 for s in found.stages)
    flat = msa(Search(sources(), lambda rows, *_: TrainedRun(0.5, "run"), toy.score))
    assert [s.used for s in flat.stages] == [True, False, False] and {*flat.kept} == {"template"}


def test_as_many_other_rows_are_another_training():
    toy, rows = Toy(), {"a": rows_of("a", 50, 1), "b": rows_of("b", 50, 2)}
    search = Search(rows, toy.train, toy.score)
    assert [search.accuracy(search.whole(name)) for name in rows] == [accuracy_of(own) for own in rows.values()]
    half = [search.trained(Selection({"a": places})).accuracy for places in (tuple(range(25)), tuple(range(25, 50)))]
    assert half == [accuracy_of(rows["a"][:25]), accuracy_of(rows["a"][25:])] and len(toy.calls) == 4


@pytest.mark.parametrize("several", [False, True])
def test_killed_anywhere_it_goes_on_and_repeats_nothing(tmp_path, several):
    """Killed before each of its trainings and scores in turn."""
    whole = Toy()
    find = (lambda s: msa(s)) if several else (lambda s: ssa(s, "template"))
    want = find(Search(sources(), whole.train, whole.score, SearchSettings(proxy=True), folder=tmp_path / "whole"))
    work = len(whole.calls) + len(whole.scored)
    calls, scored = [], []
    for _ in range(work):
        toy = Toy(stop_after=1)
        search = Search(sources(), toy.train, toy.score, SearchSettings(proxy=True), folder=tmp_path / "killed")
        with contextlib.suppress(KeyboardInterrupt):
            got = find(search)
        calls += toy.calls
        scored += toy.scored
    assert (got.rows, got.stages, got.trained) == (want.rows, want.stages, want.trained)
    assert calls == whole.calls and scored == whole.scored
    assert (tmp_path / "killed" / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()


def test_a_spent_budget_ends_with_the_best_so_far_and_a_larger_one_goes_on(tmp_path):
    toy = Toy()
    found = ssa(Search({"s": rows_of("s")}, toy.train, toy.score, folder=tmp_path, max_trainings=3))
    assert not found.complete and len(toy.calls) == 3
    assert found.stages[0].threshold == 0.4 and found.trained.accuracy == accuracy_of(found.rows)
    more = Toy()
    whole = ssa(Search({"s": rows_of("s")}, more.train, more.score, folder=tmp_path))
    assert whole.complete and len(more.calls) == whole.trainings - 3 and not more.scored
    with pytest.raises(ConfigError, match="at least one training"):
        ssa(Search({"s": rows_of("s")}, toy.train, toy.score, max_trainings=0))
    assert not msa(Search(sources(), toy.train, toy.score, max_trainings=5)).complete


def test_a_state_of_other_data_or_a_broken_one_is_refused(tmp_path):
    toy = Toy()
    ssa(Search({"s": rows_of("s")}, toy.train, toy.score, folder=tmp_path))
    with pytest.raises(ConfigError, match="over other data"):
        Search({"s": rows_of("s", seed=9)}, toy.train, toy.score, folder=tmp_path)
    with pytest.raises(ConfigError, match="over other data or other settings"):
        Search({"s": rows_of("s")}, toy.train, toy.score, folder=tmp_path, settings_key="lr 1")
    for broken in ("[]", "{}", json.dumps({"version": 1, "trainings": {"a": {"accuracy": "1", "run": ""}}})):
        (tmp_path / STATE).write_text(broken)
        with pytest.raises(DataError, match="no state of a curriculum"):
            Search({"s": rows_of("s")}, toy.train, toy.score, folder=tmp_path)
    (tmp_path / STATE).write_text('{"version": ')
    with pytest.raises(DataError, match="is not valid JSON, line 1"):
        Search({"s": rows_of("s")}, toy.train, toy.score, folder=tmp_path)


def test_damaged_scores_are_made_again(tmp_path):
    first, again = Toy(), Toy()
    ssa(Search({"s": rows_of("s")}, first.train, first.score, folder=tmp_path))
    (place,) = tmp_path.glob("scores-*.npy")
    place.write_bytes(place.read_bytes()[:100])
    ssa(Search({"s": rows_of("s")}, again.train, again.score, folder=tmp_path))
    assert not again.calls and len(again.scored) == 1


def test_what_cannot_be_searched_is_one_line():
    toy = Toy()
    with pytest.raises(DataError, match="source s has no rows"):
        Search({"s": []}, toy.train, toy.score)
    with pytest.raises(DataError, match="no row of s has a reliability above 0"):
        ssa(Search({"s": [("s", 0, 0.0)]}, toy.train, toy.score))
    with pytest.raises(DataError, match="number in \\[0, 1\\] for each of 200 rows"):
        ssa(Search({"s": rows_of("s")}, toy.train, lambda m, rows: [2.0] * len(rows)))
    with pytest.raises(DataError, match="must end with an accuracy, got nan"):
        ssa(Search({"s": rows_of("s")}, lambda *a: TrainedRun(np.nan), toy.score))
    with pytest.raises(UnknownName, match="unknown source"):
        msa(Search(sources(), toy.train, toy.score), ["templates"])
    for wrong in ({"step": 0.0}, {"start": 0.95}, {"low": -0.1}, {"folds": 0}, {"high": 1.0}, {"min_gain": -1.0}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"^(?=.*{name}).* must .*got .*{value}"):
            SearchSettings(**wrong)


def test_a_plan_bounds_what_is_trained():
    settings = SearchSettings(proxy=True)
    for several in (False, True):
        toy = Toy()
        search = Search(sources(), toy.train, toy.score, settings)
        found = msa(search) if several else ssa(search)
        stages = plan_curriculum({name: len(rows) for name, rows in sources().items()}, settings, not several)
        least = 0 if several else sum(s.least for s in stages)  # these measurers agree, and equal rows count once
        assert least <= found.trainings <= sum(s.most for s in stages)
    stages = plan_curriculum({"a": 3600, "b": 100}, SearchSettings(folds=2))
    assert [(s.name, s.least, s.most) for s in stages] == [("measurers", 6, 6), ("a", 4, 11), ("b", 4, 11)]
    table = plan_rows(stages, seconds_per_row=1.0, max_trainings=9)
    assert table[0] == ("measurers", "6", "6", "6.00") and table[-1][:3] == ("in all", "9", "9")
