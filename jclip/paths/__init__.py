"""Files written whole, hashes of files, and where jclip keeps what it can make again."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "file_hashes": ("compute_sha256", "file_sha256"),
        "places": ("ASSETS", "cache_dir", "exists", "expanded", "is_file", "open_regular", "plain_path"),
        "replaced_files": (
            "creating",
            "naming",
            "refuse_overwriting",
            "remove_parts",
            "replacing",
            "write_together",
        ),
        "replaced_folders": ("replacing_folder",),
    },
)
