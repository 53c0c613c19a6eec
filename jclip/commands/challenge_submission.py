"""What the challenge takes: members fused, test photos labelled, the file written, checked, zipped, and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jclip.commands.challenge_steps import Config, Pipeline, parameters, results_of
from jclip.config import build, to_json, to_values
from jclip.errors import say
from jclip.features.source import ModelSource, source_of
from jclip.functional.metrics import top_k
from jclip.paths import replacing
from jclip.report.fused_runs import Fused, fuse, gated, untaught
from jclip.report.predictions import Predictions, check_challenge, table, write_predictions, zip_challenge
from jclip.report.predictor import Classifier
from jclip.train.run_facts import provenance

Members = Mapping[str, Classifier]
STEPS = ("tune", "members", "results")  # of train1.sh, train2.sh and test.sh


def run(
    values: dict[str, Any], place: str, folder: Path, until: str, dry_run: bool, overrides: Sequence[str] = ()
) -> None:
    """The few-shot challenge of a YAML's `values` up to the step `until`, its runs below `folder`. overrides: `key=value`
    settings that `values` has already."""
    work = Pipeline(build(Config, values, place), folder, place, overrides)
    work.check()
    if dry_run:
        say(work.plan())
        return
    best = work.tune()
    if until != "tune":
        members = work.train(best)
        if until == "results":
            submit(work, members)


def submit(work: Pipeline, members: Members) -> None:
    """Fuses the members, labels the test photos, writes and shows the results. Raises `ConfigError` where the members'
    models are larger together than the challenge allows."""
    cfg, photos, test = work.cfg, work.photos, work.to_label
    work.check_size(sizes := sizes_of(members))
    of_val, of_test = (
        {name: one.label(split)[0].scores for name, one in members.items()} for split in (photos.val, test)
    )
    fused = fuse(of_val, photos.val.labels, cfg.fuse, **asdict(cfg.fusion))
    val, test_scores, sent = fused(of_val), fused(of_test), None
    figures = {"val_top1": top_k(val, photos.val.labels)}
    if cfg.gate and not work.taught.all():
        gate = {"taught": work.taught, "margin": cfg.gate_margin}
        sent = {
            "val": int(untaught(of_val[cfg.gate], **gate).sum()),
            "test": int(untaught(of_test[cfg.gate], **gate).sum()),
        }
        val, test_scores = gated(val, of_val[cfg.gate], **gate), gated(test_scores, of_test[cfg.gate], **gate)
        figures["val_top1_gated"] = top_k(val, photos.val.labels)
    figures["val_top5"] = top_k(val, photos.val.labels, 5)
    if (test.labels >= 0).all():
        figures |= {f"test_top{k}": top_k(test_scores, test.labels, k) for k in (1, 5)}
    files = write(cfg, Predictions(test.paths, photos.classnames, test_scores))
    say(summary(cfg, fused, members, sizes, figures))
    if sent:
        say(
            f"{int((~work.taught).sum())} classes without training photos: {cfg.gate} takes {sent['val']} of "
            f"{len(photos.val)} validation photos and {sent['test']} of {len(test)} test photos for one of them"
        )
    facts = {"figures": figures, "fused": asdict(fused), "gate": sent, "parameters": sizes,
             "runs": {name: str(one.folder) for name, one in members.items()}, "config": to_values(cfg)}  # fmt: skip
    note = files[0].with_suffix(".json")
    with replacing(note) as temporary:
        text = to_json(facts | {"provenance": provenance()}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    say(f"written: {', '.join(map(str, files))} ({len(test)} photos), {note}")


def sizes_of(members: Members) -> dict[str, int]:
    """Numbers of parameters: of each weight file once, and of what members learned beside."""
    models: dict[str, tuple[str, ModelSource]] = {}
    for name, one in members.items():
        source = source_of(one.config, one.model)
        models.setdefault(source.checkpoint.sha256, (f"model of {name}", source))
    learned = {f"learned by {name}": sum(a.size for a in one.learned.values()) for name, one in members.items()}
    return {name: parameters(source) for name, source in models.values()} | learned


def write(cfg: Config, predictions: Predictions) -> list[Path]:
    """resultMMDD.txt, read again and checked, and its .zip."""
    path = results_of(cfg)[0]
    write_predictions(predictions, str(path))
    check_challenge(path, predictions.photos)
    return [path, zip_challenge(path)]


def summary(cfg: Config, fused: Fused, members: Members, sizes: Mapping[str, int], figures: Mapping[str, float]) -> str:
    """Tables of weights and sizes, and the figures."""
    weights = {name: f"{fused.weights[name]:.2f}" if name in fused.weights else "" for name in members}
    rows = [[name, f"{one.metrics['val_top1']:.4f}", weights[name]] for name, one in members.items()]
    rows += [["together", f"{figures['val_top1']:.4f}", ""]]
    rows += [["with the gate", f"{figures['val_top1_gated']:.4f}", ""]] if "val_top1_gated" in figures else []
    counts = {**sizes, "together": sum(sizes.values())}
    shown = [[name, f"{count / 1e6:.2f}"] for name, count in counts.items()]
    rest = [f"{name.replace('_top', ' top-')} {value:.4f}" for name, value in figures.items() if "val_top1" not in name]
    return "\n".join([
        table(["", "top-1 on validation", "weight"], rows),
        table(["parameters, millions", f"of {cfg.parameters:g}"], shown),
        ", ".join(rest),
    ])  # fmt: skip
