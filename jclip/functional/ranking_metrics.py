"""How good rankings of photos are: mean average precisions of what stands at the front. NumPy.

The figures of `jclip.functional.retrieval`, of an order of the photos instead of scores, in a gallery with photos that
nobody looks for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from jclip.errors import DataError
from jclip.functional.retrieval import rank_report


def order_report(order: np.ndarray, wanted: np.ndarray, depth: int = 10) -> dict[str, float]:
    """(Q, G) photos of each query, best first, (Q, G) true where a photo answers a query → its figures.

    map; map@10 (divided by min(R, 10) of a query with R photos); map@10_of_found, the traffic challenge's official score
    (divided by the hits among the first 10); recall@1, @5, @10, r_precision and others of `rank_report`. Raises `DataError`
    for a query that no photo answers.
    """
    if not wanted.any(axis=1).all() or not len(wanted):
        raise DataError(
            f"each query must have a photo that answers it, got {int((~wanted.any(axis=1)).sum())} of {len(wanted)} without"
        )
    queries, ranks = np.nonzero(np.take_along_axis(wanted, order, axis=1))
    return rank_report(ranks, queries, len(order), depth)


def front_report(
    found: Sequence[Sequence[str]], wanted: Sequence[Collection[str]], depth: int = 10
) -> dict[str, float]:
    """Both mean average precisions of lists of names as they are handed in: only `depth` names count, and a name
    given twice counts once, where it stands first.

    official: Σ_hits h / rank / h with h counted from 1e-6 (the published scorer), 0 where nothing was found;
    standard: Σ_hits h / rank / min(R, depth).
    """
    official, standard = [], []
    for names, right in zip(found, wanted, strict=True):
        hits, total, exact = 1e-6, 0.0, 0.0
        first = dict.fromkeys(names)
        for rank, name in enumerate(list(first)[:depth], start=1):
            if name in right:
                hits += 1
                total += hits / rank
                exact += round(hits) / rank
        official.append(total / hits)
        standard.append(exact / min(len(right), depth))
    return {f"map@{depth}_of_found": float(np.mean(official)), f"map@{depth}": float(np.mean(standard))}
