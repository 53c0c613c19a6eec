"""Training: loop, optimisers, a run's folder, configs and recipes by name."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "box_training": ("FoundBoxes", "PhraseBatches", "batch_loss", "found_in"),
        "caption_training": ("CaptionBatches", "CaptionLoss", "read_captions"),
        "configs": (
            "build_config",
            "default_folder",
            "files_named_in",
            "find_config",
            "read_config",
            "resolved",
            "shipped",
        ),
        "curriculum_plan": ("plan_curriculum", "plan_rows"),
        "curriculum_search": ("Search", "SearchSettings", "msa", "ssa"),
        "curriculum_state": ("TrainedRun",),
        "deep_prompt_training": ("learn", "photos_for", "with_names"),
        "keyed_runs": ("KeyedRuns", "key_of"),
        "loop": ("fit",),
        "multi_label_photos": ("Measured", "names_of", "read_parts"),
        "on_features": (
            "Batches",
            "Learner",
            "Samples",
            "Trained",
            "best_on_val",
            "best_setting",
            "cache_hits",
            "class_means",
            "grid",
            "in_chunks",
            "need_text",
            "need_val",
            "one_hot",
            "warmed_rate",
            "zero_shot_report",
        ),
        "on_photos": (
            "check_photos",
            "features_in_parts",
            "features_of_now",
            "head_of_now",
            "measure",
            "measured_parts",
            "photo_epochs",
            "shares",
        ),
        "optim": ("AdamW", "TrainState", "clip_by_norm", "cosine", "learning_rate", "optimiser", "warmup_steps"),
        "pair_training": ("MeasuredPairs", "PairHead", "PlaceBatches"),
        "recipe_runs": ("finished",),
        "run": ("Run", "read_result"),
        "run_facts": ("peak_memory", "provenance"),
        "run_folder": ("adding_to", "is_run", "read_index"),
        "scored_photos": ("ScoredInParts", "ScoredPhotos", "measured"),
    },
)
