"""`jclip hold-out`: draws training and validation photos from the Jittor challenge's folder."""

from __future__ import annotations

from pathlib import Path

from jclip.commands import held_out_photos
from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.data import class_names, splits
from jclip.data.challenge_folder import ALL, CLASSES, SHOTS
from jclip.errors import say


def main(argv: list[str]) -> int:
    """Draws train_4class.txt where it is absent, and TestSetZ with TestSetZ-label.txt. The same seed draws the same
    photos. No photo of TestSetZ is in train_4class.txt, nor is a copy of it."""
    p = Parser("jclip hold-out", description=main.__doc__)
    p.add_argument(
        "folder",
        type=nonempty,
        metavar="FOLDER",
        help="a folder with classes.txt, train.txt and the photos it lists (docs/challenge.md)",
    )
    p.add_argument(
        "--count", type=whole(1, 10**9), default=3000, metavar="N", help="photos of TestSetZ (default: 3000)"
    )
    p.add_argument(
        "--shots",
        type=whole(1, 10**9),
        default=4,
        metavar="N",
        help="photos per class in train_4class.txt (default: 4)",
    )
    add_shared(p, "--seed", " of both draws (default: 10)", default=10)
    p.add_argument("--link", action="store_true", help="fill TestSetZ with symbolic links, not copies")
    args = p.parse_args(argv)

    folder = Path(args.folder)
    names = class_names.read_classes(folder / CLASSES)
    photos = splits.read_list(folder / ALL, folder, names)
    drawn = [] if (folder / SHOTS).is_file() else [held_out_photos.write_shots(folder, photos, args.shots, args.seed)]
    learned = splits.read_list(folder / SHOTS, folder, names)
    held = held_out_photos.draw(photos, learned, args.count, args.seed)
    written = held_out_photos.write_held_out(folder, held, args.link)
    say("\n".join([*drawn, f"{written}: {len(held)} photos", *held_out_photos.lacking(held, names)]))
    return 0
