"""What somebody may have meant: one wording for every "did you mean"."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if a known word is near, else the known words when they are few, else nothing."""
    words = sorted(set(known))
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:
        folded = {w.lower().replace("_", "").replace("-", ""): w for w in words}
        same = folded.get(word.lower().replace("_", "").replace("-", ""))
        near = [same] if same else []
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 12 else ""
