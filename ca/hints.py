"""What somebody may have meant: one wording for every "did you mean"."""

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if a known word is near, else the known words when they are few, else nothing."""
    import difflib  # only for those who err

    words = sorted(set(known))
    folded = {_fold(w): w for w in words}
    near = difflib.get_close_matches(_fold(word), folded, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {folded[near[0]]}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 12 else ""


def _fold(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")
