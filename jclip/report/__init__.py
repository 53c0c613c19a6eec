"""What people hand in or look at: predictions, tables, plots, contact sheets, sorted folders."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "calibration_file": ("calibration_for", "read_calibration", "write_calibration"),
        "classifier": ("Classifier",),
        "contact_sheet": ("check_sheet", "write_sheet", "write_tag_sheet"),
        "ensemble_files": ("EnsembleRule", "ensemble_rule", "put_together", "read_ensemble"),
        "evaluation": ("benchmark_of", "write_csv", "write_evaluation", "write_json"),
        "finished_run": ("FinishedRun", "unlabelled"),
        "fused_runs": ("Fused", "fuse", "gated", "untaught"),
        "grounder": ("FoundThing", "Grounder"),
        "plots": ("plot_shots",),
        "predictions": (
            "Predictions",
            "check_challenge",
            "check_format",
            "marked",
            "shorten",
            "show",
            "table",
            "write_predictions",
            "zip_challenge",
        ),
        "predictor": ("Predictor", "measure", "write_handed_over"),
        "retriever": ("Retriever",),
        "run_table": ("accuracy_of", "report", "selected_on_test", "memory_lines"),
        "score_files": ("Scores", "aligned", "joined", "read_scores", "write_scores"),
        "scoring_run": ("ScoringRun",),
        "sorted_folders": ("check_folder", "counts", "place", "plan", "undo"),
        "tagging_run": ("TaggingRun",),
        "tags": ("Tags", "plan_tags", "show_tags", "write_tags"),
        "tasks": ("TASKS", "Task", "task_of"),
        "transfer": ("base_to_new", "means", "on_sets"),
    },
)
