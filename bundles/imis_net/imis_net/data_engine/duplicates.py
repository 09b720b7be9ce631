"""Images that are there twice, by perceptual hash, in time nearly linear in their number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class DuplicateFinder:
    """Tells of each image, in order, which earlier one it repeats.

    Two hashes of at most d differing bits agree in one of d + 1 pieces, so only those that share a piece are compared.
    Slices of one patient look alike without being copies: there only equal pixels count.
    """

    def __init__(self, max_distance: int) -> None:
        self.max_distance = max_distance
        self._by_piece: dict[tuple[int, str], list[tuple[int, str, str]]] = defaultdict(list)
        self._by_content: dict[str, str] = {}

    def seen(self, stem: str, phash: str, content: str, patient: str) -> str | None:
        """The stem of the earlier image that this one repeats, or None, and then it is remembered.

        Args:
            phash: hexadecimal, of one length.
            content: digest of the pixels.
        """
        if content in self._by_content:
            return self._by_content[content]
        bits = int(phash, 16)
        pieces = list(enumerate(self._pieces(phash)))
        for piece in pieces:
            for other_bits, other, other_patient in self._by_piece[piece]:
                if patient != other_patient and (bits ^ other_bits).bit_count() <= self.max_distance:
                    return other
        self._by_content[content] = stem
        for piece in pieces:
            self._by_piece[piece].append((bits, stem, patient))
        return None

    def _pieces(self, phash: str) -> Iterable[str]:
        bits = f"{int(phash, 16):0{4 * len(phash)}b}"
        size = -(-len(bits) // (self.max_distance + 1))
        return (bits[i : i + size] for i in range(0, len(bits), size))
