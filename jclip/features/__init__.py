"""A model with its preprocessing as one source, and what is computed with it once: features and heads."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "box_proposals": ("BoxScorer", "ProposalRules"),
        "caption_features": ("Encoded", "encode_pairs", "ids_of"),
        "extraction": ("TrainingRows", "encode_photos", "extract", "few_shot_features", "warn_photos", "training_view"),
        "gallery": ("Found", "Gallery", "Hit", "Search"),
        "gallery_ranking": ("Ranking", "parse_method"),
        "heads": (
            "ZeroShotHead",
            "check_width",
            "encode_prompts",
            "head_of",
            "prompt_features",
            "text_for",
            "text_means",
            "zero_shot_head",
        ),
        "member": ("Member", "check_mixture"),
        "pair_maps": ("PairScorer", "PairSource"),
        "photo_maps": ("MapScorer", "MapSource", "Scored", "score_photos"),
        "photo_galleries": ("gallery_of_photos",),
        "precomputed": ("FeatureSet", "read_precomputed"),
        "rough_boxes": ("RoughScorer",),
        "run_data": ("read_run_photos", "run_features", "run_photos"),
        "sentence_features": ("SentenceFeatures",),
        "several_models": ("Mixture", "PromptHead", "build_mixture", "deciding"),
        "source": ("ModelSource", "SideBySide", "source_of", "with_vectors"),
        "window_scores": ("WindowModel", "WindowPlan", "WindowScorer"),
        "tagging": ("PhotoScores", "Scorer", "Tagger"),
    },
)
