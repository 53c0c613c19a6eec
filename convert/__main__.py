"""`python convert SRC DST`: Python puts this folder itself on its path then, so the checkout is put there instead."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from convert.cli import main
from jclip.machine import memory_limit

if __name__ == "__main__":
    sys.exit(memory_limit.run_inside(lambda: main(sys.argv[1:]), "convert"))
