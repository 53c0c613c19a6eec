"""Sums over ranks that stay on their GPUs, by NCCL: whether all ranks can, a trial, and the operator.

Ranks agree by MPI at their first sum. Where one of them can't, all sum through the host, and rank 0 says why in one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import notice
from jclip.machine import nccl, ranks
from jclip.machine.nccl import NcclFailed
from jclip.paths import plain_path
from jclip.runtime import jt

SOURCES = Path(__file__).resolve().parent / "sources"
AT_ONCE = 16  # arrays of one launch: an operator is compiled for one and for so many
NO_GPU, OFF = "no GPU", "JCLIP_NCCL=0"
Exchange = Callable[[Any], list[Any]]  # what each rank gives, as JSON has it → what all gave, in the order of ranks
_agreed: tuple[DeviceSums | None, str] | None = None


def between(given: Exchange) -> DeviceSums | None:
    """Sums on the GPUs, or None where ranks sum through the host. All ranks ask at the same place."""
    return agreement(given)[0]


def agreement(given: Exchange) -> tuple[DeviceSums | None, str]:
    """`between`, and why it is None. Decided once by this process and its others."""
    global _agreed
    if _agreed is None:
        _agreed = _agree(given)
        sums, why = _agreed
        if not sums and why not in (NO_GPU, OFF) and ranks.here().first:
            notice(f"jclip: gradients of {ranks.here().size} ranks are summed through the host's memory: {why}")
    return _agreed


class DeviceSums:
    """Sums over all ranks of arrays on their GPUs."""

    def __init__(self, communicator: nccl.Communicator):
        self.communicator = communicator

    @property
    def version(self) -> str:
        """NCCL's."""
        return self.communicator.nccl.version

    def of_one(self, array: jt.Var) -> jt.Var:
        """The sum over ranks of a float32 array, of one shape on all."""
        return self._launch([array])[0]

    def of_many(self, arrays: Sequence[jt.Var]) -> list[jt.Var]:
        """Sums of small arrays, several in one launch, each of which waits for the slowest rank."""
        made: list[jt.Var] = []
        for first in range(0, len(arrays), AT_ONCE):
            part = [*arrays[first : first + AT_ONCE]]
            filled = [*part, *(jt.zeros(1) for _ in range(AT_ONCE - len(part)))]
            made += self._launch(filled)[: len(part)]
        return made

    def _launch(self, arrays: Sequence[jt.Var]) -> list[jt.Var]:
        """Called one by one, in one order on all ranks: each is begun before Jittor gets the next."""
        with jt.no_grad():
            flat = [a.reshape(-1) for a in arrays]
            sums = _operator(flat, self.communicator.addresses())
            jt.sync(sums)
            self.communicator.check()
            return [s.reshape(tuple(a.shape)) for s, a in zip(sums, arrays, strict=True)]


def _operator(flat: list[jt.Var], addresses: dict[str, int]) -> list[jt.Var]:
    """One operator that calls NCCL. Where no GPU computes it is the same: stand-ins of NCCL sum there."""
    count = range(len(flat))
    source = (
        f"const float* given[] = {{{', '.join(f'in{i}_p' for i in count)}}};\n"
        f"float* made[] = {{{', '.join(f'out{i}_p' for i in count)}}};\n"
        f"const int64_t sizes[] = {{{', '.join(f'int64_t(in{i}_shape0)' for i in count)}}};\n"
        f"jclip::nccl_sum(given, made, sizes, {len(flat)}, data);"
    )
    header = f'#include "nccl_sum.h"  // {_digest()}\n'
    options = {"cpu_header": header, "cpu_src": source, "cuda_header": header, "cuda_src": source, "data": addresses}
    made = jt.code([tuple(a.shape) for a in flat], ["float32"] * len(flat), flat, **options)
    for var in made:
        var.compile_options = {f"FLAGS: -I{plain_path(SOURCES)} ": 1}
    return made


@lru_cache(maxsize=1)
def _digest() -> str:
    made = hashlib.sha256()
    for name in ("nccl_sum.h", "nccl_watch.h"):
        made.update((SOURCES / name).read_bytes())
    return made.hexdigest()[:12]


def computes_on_gpu() -> bool:
    """Whether this rank's arrays are on a GPU."""
    return bool(jt.flags.use_cuda)


def _agree(given: Exchange) -> tuple[DeviceSums | None, str]:
    here, mine, seconds = ranks.here(), {"card": "", "version": "", "id": "", "why": ""}, nccl.seconds_of_a_sum()
    try:
        library = _library()
        mine |= {"card": nccl.card(), "version": library.version, "id": library.new_id() if here.first else ""}
    except NcclFailed as e:
        mine["why"] = str(e)
    facts = given(mine)
    if why := _obstacle(facts):  # this rank's among others'
        return None, why
    sums, why = None, ""
    try:
        sums = DeviceSums(library.join(facts[0]["id"], here.rank, here.size))
    except NcclFailed as e:
        why = str(e)
    why = _first_failure(given(why)) or _trial(sums, given)
    if why and sums:
        sums.communicator.abort()
    if why:
        return None, why
    sums.communicator.end_process_after(seconds)
    return sums, ""


def _library() -> nccl.Nccl:
    """Raises `NcclFailed` where this rank does without."""
    if not computes_on_gpu():
        raise NcclFailed(NO_GPU)
    if nccl.switched_off():
        raise NcclFailed(OFF)
    return nccl.Nccl()


def _obstacle(all_of: list[dict[str, str]]) -> str:
    """Why these ranks can't join, or nothing."""
    if why := _first_failure([one["why"] for one in all_of]):
        return why
    for i, j in combinations(range(len(all_of)), 2):
        if all_of[i]["card"] == all_of[j]["card"]:
            return f"ranks {i} and {j} share one GPU, NCCL wants one for each"
    for rank, one in enumerate(all_of):
        if one["version"] != all_of[0]["version"]:
            return f"rank {rank} has NCCL {one['version']}, rank 0 has {all_of[0]['version']}"
    return ""


def _first_failure(reasons: list[str]) -> str:
    """That of the first rank with one, which is named where others have none."""
    rank = next((rank for rank, why in enumerate(reasons) if why), None)
    if rank is None:
        return ""
    return reasons[rank] if len({*reasons}) == 1 else f"rank {rank}: {reasons[rank]}"


def _trial(sums: DeviceSums, given: Exchange) -> str:
    """Sums of known numbers, several at once and alone: nothing if they are right on all ranks, else what happened."""
    here, made, why = ranks.here(), [], ""
    arrays = [np.arange(n, dtype=np.float32).reshape(-1, 1) + here.rank for n in (1, 2, 1000)]
    wanted = [here.size * (a - here.rank) + here.size * (here.size - 1) / 2 for a in arrays]
    try:
        mine = [jt.array(a) for a in arrays]
        jt.sync(mine)
        made = [*sums.of_many(mine), sums.of_one(mine[-1])]
    except NcclFailed as e:
        why = str(e)
    except RuntimeError as e:  # Jittor's, of the operator: its report has many lines
        why = f"the operator that calls NCCL {sums.version} failed: {' '.join(str(e).split())[:300]}"
    if why := _first_failure(given(why)):  # all have compiled it and begun, from here on time counts
        return why
    try:
        if computes_on_gpu():
            nccl.wait_for_card()
        if not all(np.array_equal(m.numpy(), w) for m, w in zip(made, [*wanted, wanted[-1]], strict=True)):
            why = f"NCCL {sums.version} summed known numbers wrongly"
    except NcclFailed as e:
        why = str(e)
    return _first_failure(given(why))
