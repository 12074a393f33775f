"""How near two texts are: the metrics of a text_similarity grader but cosine, which needs a model.

Pure. Each metric loads its library when it is first asked for. The longest texts that are compared take well below a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

MAX_COMPARED = 2**16
"""Characters of a text that is compared; a longer one has no score."""
_one_at_a_time = threading.Lock()
"""NLTK can't be loaded by two threads at once, for its modules import each other; and the interpreter runs one of them anyway."""


def similarity(metric: str, text: str, reference: str) -> float:
    """From 0, nothing in common, to 1. Blocks, so call it in a thread. Needs both texts within MAX_COMPARED."""
    with _one_at_a_time:
        if metric.startswith("rouge_") and metric != "rouge_l":
            return _rouge_n(text, reference, int(metric[-1]))
        return _METRICS[metric](text, reference)


def _fuzzy_match(text: str, reference: str) -> float:
    """1 - insertions and deletions between the texts over their length together (rapidfuzz' `fuzz.ratio`)."""
    from rapidfuzz import fuzz

    return fuzz.ratio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    """BLEU of one sentence (Papineni et al. 2002): 13a tokens, orders up to 4 as far as the text has them, exponential smoothing."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    try:
        return min(1.0, BLEU(effective_order=True).sentence_score(text, [reference]).score / 100)
    finally:
        # They would keep the last 65,536 texts for good.
        Tokenizer13a.__call__.cache_clear()
        TokenizerRegexp.__call__.cache_clear()


def _gleu(text: str, reference: str) -> float:
    """Google BLEU (Wu et al. 2016): the lesser of precision and recall of all 1- to 4-grams."""
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([_words(reference)], _words(text)))


def _meteor(text: str, reference: str) -> float:
    """METEOR (Lavie & Agarwal 2007) with exact and Porter-stem matches; synonyms would need WordNet, which is not installed."""
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(_words(reference), _words(text), wordnet=_NoSynonyms()))


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[object]:
        return []


def _words(text: str) -> list[str]:
    """Runs of letters and digits, and runs of punctuation (NLTK's wordpunct)."""
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize(text)


def _rouge_n(text: str, reference: str, n: int) -> float:
    """F1 of the n-grams (Lin 2004), in lower case, letters and digits only, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    name = f"rouge{n}"
    return float(RougeScorer([name], tokenizer=DefaultTokenizer()).score(reference, text)[name].fmeasure)


def _rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004).

    rouge-score's own table is quadratic in Python, an hour for the longest texts; rapidfuzz reckons the same length.
    """
    from rapidfuzz.distance import LCSseq
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenize import tokenize

    words, wanted = tokenize(text, None), tokenize(reference, None)
    if not words or not wanted:
        return 0.0
    common = LCSseq.similarity(words, wanted)
    return float(fmeasure(common / len(words), common / len(wanted)))


_METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "rouge_l": _rouge_l,
}
