"""The suite. Its processes have one thread each unless OMP_NUM_THREADS says otherwise, before anything reads that."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # toys are slower on more: threads wait for each other
