"""Strict YAML to frozen dataclasses. Imports no Jittor: a wrong setting is refused at once.

Merge order: defaults of the dataclass, then the file, then `key=value` from the command line; nothing else. Unknown,
missing, duplicate, ill-typed and out-of-set values are errors that name the file and the dotted key.
"""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "building": ("build", "to_json", "to_values", "to_yaml"),
        "groups": (
            "BoxDataConfig",
            "BoxViewConfig",
            "CaptionConfig",
            "DataConfig",
            "Dtype",
            "OptimConfig",
            "ReadWith",
            "SourcesConfig",
            "Subset",
            "check_grid",
            "refuse_average",
            "require",
            "warmed_sgd",
        ),
        "protocols": (
            "Dataclass",
            "WithAugmentation",
            "WithClasses",
            "WithDtype",
            "WithFeatureLayer",
            "WithGrid",
            "WithModel",
            "WithOptimiser",
            "WithPhotos",
            "WithSearch",
            "WithSelection",
            "WithTemplates",
            "WithViews",
        ),
        "unread_settings": ("dotted_names", "refuse_unread", "why_unread"),
        "settings": ("WORLD", "apply_overrides", "load_groups", "load_values", "project_of"),
    },
)
