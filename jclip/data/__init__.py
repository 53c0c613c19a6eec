"""Photos, lists, captions and few-shot draws, and how photos are seen. Imports no Jittor."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "augment": ("Views", "pipeline_of"),
        "box_samples": ("BoxSamples", "samples_of_scenes", "world_samples"),
        "captions": ("Pairs", "read_pairs"),
        "challenge_folder": ("from_folder",),
        "checks": (
            "check_apart",
            "check_several",
            "check_taught",
            "check_without_gap",
            "copied",
            "preview",
            "repeated",
            "warn_few",
            "warn_leaks",
        ),
        "class_names": ("read_class_names", "read_classes"),
        "examine": ("Seen", "examined"),
        "folders": ("nearest_beside", "spoken_name"),
        "label_files": ("ClassFinder", "PhotoLabels"),
        "loader": ("OnError", "batches", "warn_once"),
        "multi_label": ("read_multi_label",),
        "multi_label_sets": ("LabelRules", "read_coco", "read_labels", "read_nus_wide", "read_voc"),
        "labelled_photos": ("read_labelled_photos",),
        "labelled_captions": ("LabelledCaptions", "read_captions"),
        "lexicons": ("Lexicon", "load_lexicon"),
        "nouns": ("Labeller",),
        "pair_counts": ("count_pairs",),
        "photo_file": ("open_photo",),
        "photo_hashes": ("is_hash",),
        "preprocess": ("Preprocess", "with_choice"),
        "scene_captions": ("template_captions", "world_captions"),
        "splits": (
            "PhotoData",
            "Split",
            "drawn_photos",
            "find_photos",
            "half",
            "kept",
            "natural_key",
            "noted",
            "read_all_photos",
            "read_list",
            "read_photos",
            "renamed",
            "subset_of",
        ),
    },
)
