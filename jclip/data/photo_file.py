"""The one place that opens photos: which formats, how large, and what a refusal says. Imports no Jittor."""

from __future__ import annotations

# Endings of files that count as photos, in lower case; the format is decided by the bytes, not by the ending.
PHOTO_ENDINGS = frozenset(
    """
    .jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .tga .jp2 .j2k .avif .heic .heif
    """.split()
)
