"""How many things a phrase names, estimated without a parser: to put sources of labels in order. Imports no Jittor."""

from __future__ import annotations

from jclip.data.word_forms import tokens_of

_WORDS_BETWEEN = """a an the this that these those my your his her its our their some any each every another both several
many few and or but nor with without in on at by of to from for as is are was were be being been have has had who which where
when while into onto over under near next beside besides behind between among around above below inside outside across along
through against off up down out there here it not no than then so he she they we you i"""
_WORDS_OF_PLACE = "left right top bottom middle center centre upper lower front back side far"
_BETWEEN = frozenset(_WORDS_BETWEEN.split())  # words that no thing's name has
_PLACES = frozenset(_WORDS_OF_PLACE.split())


def count_things(phrase: str) -> int:
    """Return the number of runs of words between articles, prepositions, verbs in -ing and marks, words of place aside:
    "red circle on the left" names 1, "man wearing hat" 2. At least 1."""
    count, inside = 0, False
    for token in tokens_of(phrase):
        if token in _BETWEEN or token.endswith("ing") or not token[0].isalnum():
            inside = False
        elif token not in _PLACES:
            count += not inside
            inside = True
    return max(count, 1)
