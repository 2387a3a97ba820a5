"""A preference that can be written down: what the simulated annotator of the demo likes, and how noisily.

It likes plain answers from one person to another: ones that say you and I, in short sentences, made of short words,
that do not repeat themselves. All five are rates, so a longer answer is not a better one. The weights are equal after
scaling each feature by its spread over the answers that are ranked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, pstdev

import numpy as np

READER = {"you", "your", "you're", "yours", "yourself", "you'll", "you've"}
SPEAKER = {"i", "i'm", "i'd", "i'll", "i've", "my", "me", "mine", "we", "we're", "we'll", "our", "us", "let's"}
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)|\n+")
CLIP = 2.5


def features(text: str) -> tuple[float, float, float, float, float]:
    """Higher is more liked: the shares of words that address the reader and that name the speaker, -log words a
    sentence, -letters a word, and the share of sequences of three words that were not said before."""
    words = [word.replace("’", "'").lower() for word in WORD.findall(text)]
    if not words:
        return 0.0, 0.0, -math.log(60), -8.0, 0.0
    sentences = max(1, sum(bool(WORD.search(part)) for part in SENTENCE_END.split(text)))
    address = sum(word in READER for word in words) / len(words)
    speaker = sum(word in SPEAKER for word in words) / len(words)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    fresh = len(set(triples)) / len(triples) if triples else 1.0
    return address, speaker, -math.log(len(words) / sentences), -fmean(map(len, words)), fresh


class TrueReward:
    """The sum of the features, each centred and scaled over a set of texts and held within ±2.5."""

    def __init__(self, texts: Sequence[str]) -> None:
        columns = list(zip(*map(features, texts), strict=True))
        self.means = [fmean(column) for column in columns]
        self.spreads = [pstdev(column) or 1.0 for column in columns]

    def __call__(self, text: str) -> float:
        """The reward, in spreads of a feature; the ranked answers have a mean near 0."""
        scaled = ((x - mean) / spread for x, mean, spread in zip(features(text), self.means, self.spreads, strict=True))
        return sum(max(-CLIP, min(CLIP, x)) for x in scaled)

    def rank(self, texts: Sequence[str], random: np.random.Generator, noise: float) -> list[int]:
        """Ranks (1 is best) drawn from the Plackett-Luce model: the pairs are Bradley-Terry with P = σ(Δ / noise)."""
        drawn = [self(text) / noise + random.gumbel() for text in texts]
        order = sorted(range(len(texts)), key=lambda i: -drawn[i])
        return [order.index(i) + 1 for i in range(len(texts))]
