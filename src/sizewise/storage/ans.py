"""Range asymmetric numeral systems over many lanes: numbers of words to bytes. `lanes.py` reads them again, a word per lane at a time.

A lane's state x lies in [2^16, 2^32). Decoding takes the word whose share of [0, 2^16) holds the lower half of x, goes on with
frequency * (x >> 16) + (x mod 2^16) - first, and where that fell below 2^16, takes two bytes of the stream in at the bottom.
Word number i belongs to lane i mod lanes; lanes read in their order. Encoding is the same backwards, so that every state ends
where it began, at 2^16, which a decoder checks.

A lane costs three bytes: a state takes four, of which two say nothing where it begins at 2^16, and one on average where it ends. With
more than `FEW` lanes the two carry the last words: these are coded before all others, by a sixteenth of the lanes, and are what the other
words' states exceed 2^16 by in the end. So more lanes can be had for the same bytes.

Source: Duda, Asymmetric numeral systems, arXiv 1311.2540, 2013; Giesen, Interleaved entropy coders, arXiv 1402.3392, 2014. What the
states carry is ours, after the bits back of Townsend et al., Practical lossless compression with latent variables, ICLR 2019.
"""

from array import array

import numpy as np
from numpy.typing import NDArray

from sizewise.storage.frequencies import Words

__all__ = ["FEW", "HEAD", "LOW", "SHRINK", "encode_words"]

LOW = 1 << 16
FEW = 16  # lanes that Python's own numbers decode faster than numpy
SHRINK = 16  # lanes per lane of those that code what the states carry
HEAD = 8  # bytes: how many words the states carry, and in how many bytes


def encode_words(numbers: NDArray[np.uint16], words: Words, lanes: int) -> bytes:
    """The lanes' first states, four bytes each, then the stream in the order in which it is read; before them what states carry.

    Args:
        numbers: of words.
        words: their frequencies.
        lanes: that take turns.
    """
    if lanes <= FEW:
        return _encoded_few(numbers.tolist(), words, lanes)
    tail, stream = _tail(numbers, words, lanes)
    carried = np.frombuffer(stream.ljust(2 * lanes, b"\0"), "<u2").astype(np.uint64)
    head = tail.to_bytes(4, "little") + len(stream).to_bytes(4, "little")
    return head + _encoded(numbers[: len(numbers) - tail], words, carried)


def _tail(numbers: NDArray[np.uint16], words: Words, lanes: int) -> tuple[int, bytes]:
    """How many of the last words fit into two bytes per lane, about, and their stream."""
    bits = np.cumsum(16 - np.log2(words.frequency[numbers[-64 * lanes :]])[::-1])
    fits = int(np.searchsorted(bits, 16 * lanes))
    while True:
        stream = encode_words(numbers[len(numbers) - fits :], words, lanes // SHRINK)
        if len(stream) <= 2 * lanes:
            return fits, stream
        fits = fits * 15 // 16


def _encoded(numbers: NDArray[np.uint16], words: Words, carried: NDArray[np.uint64]) -> bytes:
    lanes, state = len(carried), carried + np.uint64(LOW)
    frequency, first = words.frequency, words.first
    pieces: list[NDArray[np.uint16]] = []
    for begin in range((len(numbers) - 1) // lanes * lanes, -1, -lanes):
        row = numbers[begin : begin + lanes]
        some, x = frequency[row], state[: len(row)]
        full = x >= some << np.uint64(16)
        pieces.append(x[full].astype("<u2"))  # the lower half
        x[full] >>= np.uint64(16)
        whole, rest = np.divmod(x, some)
        state[: len(row)] = (whole << np.uint64(16)) + rest + first[row]
    return b"".join([state.astype("<u4").tobytes(), *(piece.tobytes() for piece in reversed(pieces))])


def _encoded_few(numbers: list[int], words: Words, lanes: int) -> bytes:
    frequency, first = words.frequency.tolist(), words.first.tolist()
    state, stream = [LOW] * lanes, array("H")
    for index in range(len(numbers) - 1, -1, -1):
        word, x = numbers[index], state[index % lanes]
        some = frequency[word]
        if x >= some << 16:
            stream.append(x & 0xFFFF)
            x >>= 16
        state[index % lanes] = (x // some << 16) + x % some + first[word]
    return np.array(state, "<u4").tobytes() + np.array(stream[::-1], "<u2").tobytes()
