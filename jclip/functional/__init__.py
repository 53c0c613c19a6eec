"""Pure functions: losses, metrics, normalised features, scores and their fusion, positions, initial values."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "box_metrics": ("box_report", "group_report", "phrase_groups", "reliability_histogram", "wilson_interval"),
        "boxes": (
            "box_loss",
            "centres_to_corners",
            "corners_to_centres",
            "corners_to_xywh",
            "giou",
            "iou",
            "iou_table",
            "xywh_to_corners",
        ),
        "calibration": (
            "Calibration",
            "best_f1_threshold",
            "fitted_sigmoids",
            "fitted_thresholds",
            "prevalence_thresholds",
        ),
        "caption_bank": ("nearest_in_bank", "pulled"),
        "cooccurrence": ("Cooccurrence", "count_cooccurrence", "modulated", "ranking_weights"),
        "directions": ("unit",),
        "fusion": ("Inputs", "best_weights", "fitted_temperature", "mixed", "transformed", "weighted_sum"),
        "initial_values": ("linear_start",),
        "lbfgs": ("Minimum", "minimise"),
        "losses": ("contrastive_loss", "cross_entropy", "kl_divergence", "positive_targets"),
        "metrics": (
            "average_precisions",
            "classification_report",
            "confusion_matrix",
            "harmonic_mean",
            "ranking",
            "softmax",
            "top_k",
        ),
        "multi_label_losses": ("asymmetric_loss", "pair_asymmetric_loss", "ranking_loss", "teacher_loss"),
        "multi_label_metrics": (
            "above",
            "average_precision_per_class",
            "best_k",
            "check_scores",
            "decision_report",
            "ranking_report",
        ),
        "multi_label_scores": ("cosines", "local_scores", "pair_scores", "place_shares", "with_winner"),
        "positions": ("resample_linearly", "resample_positions", "stretch_fourfold"),
        "prompt_scores": ("class_scores", "deciding_prompts", "prompt_probabilities", "shares"),
        "prototypes": ("cosine_scores", "linear_scores", "own_class_means"),
        "ranking_metrics": ("front_report", "order_report"),
        "reranking": ("Photos", "method_of", "rerank"),
        "retrieval": ("Links", "feature_scores", "grouped_report", "paired_report"),
        "score_ensemble": ("Ensemble", "by_columns", "rank_mean", "searched_merge"),
        "similarity": ("cache_scores", "normalise", "unit_rows", "zero_shot_scores"),
        "window_fusion": ("FusionRule", "WindowFusion", "branch_scores", "merged_scores", "model_scores"),
        "windows": ("Windows", "cut", "map_windows", "sliding_windows"),
    },
)
