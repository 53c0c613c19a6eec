"""Pure functions: losses, metrics, normalised features, scores and their fusion, positions, initial values."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
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
            "retrieval_report",
            "softmax",
            "top_k",
        ),
        "positions": ("resample_linearly", "resample_positions"),
        "prompt_scores": ("class_scores", "deciding_prompts", "prompt_probabilities", "shares"),
        "prototypes": ("cosine_scores", "linear_scores", "own_class_means"),
        "ranking_metrics": ("front_report", "order_report"),
        "reranking": ("Photos", "method_of", "rerank"),
        "retrieval": ("Links", "cosines", "grouped_report", "paired_report"),
        "similarity": ("cache_scores", "normalise", "unit_rows", "zero_shot_scores"),
    },
)
