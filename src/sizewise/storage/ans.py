"""Range asymmetric numeral systems over many lanes: numpy decodes a word per lane at a time.

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
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from sizewise.errors import UsageError
from sizewise.storage.frequencies import Words

__all__ = ["FEW", "decode_words", "encode_words"]

LOW = 1 << 16
FEW = 16  # lanes that Python's own numbers decode faster than numpy
_SHRINK = 16  # lanes per lane of those that code what the states carry
_HEAD = 8  # bytes: how many words the states carry, and in how many bytes
_HALF = np.uint32(16)
_LOWER = np.uint32(LOW - 1)


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
        stream = encode_words(numbers[len(numbers) - fits :], words, lanes // _SHRINK)
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


def decode_words(data: bytes | memoryview, count: int, words: Words, lanes: int) -> NDArray[np.uint8]:
    """The symbols of so many words, one after another.

    Raises:
        UsageError: the stream does not hold as many words.
    """
    tail = size = 0
    if lanes > FEW:
        tail, size = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:_HEAD], "little")
        data = data[_HEAD:]
    if len(data) < 4 * lanes or len(data) % 2 or tail > count or size > 2 * lanes:
        raise _broken()
    state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    stream = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
    if lanes <= FEW:
        return words.digits[_few(state.tolist(), stream.tolist(), count, words)].reshape(-1)
    slots = _many(state, stream, count - tail, words)
    carried = (state - np.uint32(LOW)).astype("<u2").tobytes()
    if bool((state >> _HALF != 1).any()) or any(carried[size:]):
        raise _broken()
    return np.concatenate([_spelled(slots, words), decode_words(carried[:size], tail, words, lanes // _SHRINK)])


def _few(state: list[int], stream: list[int], count: int, words: Words) -> "array[int]":
    frequency, first = words.frequency.tolist(), words.first.tolist()
    lanes, at, numbers = len(state), 0, array("H")
    for index in range(count):
        lane = index % lanes
        x = state[lane]
        low = x & 0xFFFF
        word = bisect_right(first, low) - 1
        x = frequency[word] * (x >> 16) + low - first[word]
        if x < LOW:
            if at >= len(stream):
                raise _broken()
            x = x << 16 | stream[at]
            at += 1
        state[lane] = x
        numbers.append(word)
    if at != len(stream) or any(x != LOW for x in state):
        raise _broken()
    return numbers


def _many(state: NDArray[np.uint32], stream: NDArray[np.uint32], count: int, words: Words) -> NDArray[np.uint16]:
    """The lower halves of the states that words were read from; the states become the last ones."""
    lanes, at = len(state), 0
    times = words.frequency.astype(np.uint32)
    frequency = times.repeat(times)
    rest = np.arange(LOW, dtype=np.uint32) - words.first.astype(np.uint32).repeat(times)
    slots = np.empty(count, np.uint16)
    for begin in range(0, count, lanes):
        x = state[: count - begin]
        slot = slots[begin : begin + lanes]
        np.bitwise_and(x, _LOWER, out=slot, casting="unsafe")
        x >>= _HALF
        x *= frequency.take(slot)
        x += rest.take(slot)
        low = (x < LOW).nonzero()[0]
        piece = stream[at : at + len(low)]
        if len(piece) != len(low):
            raise _broken()
        x[low] = x[low] << _HALF | piece
        at += len(low)
    if at != len(stream):
        raise _broken()
    return slots


def _spelled(slots: NDArray[np.uint16], words: Words) -> NDArray[np.uint8]:
    """The symbols of the words that slots belong to; words are looked up as whole numbers of 1, 2, 4 or 8 bytes."""
    times = words.frequency.astype(np.uint32)
    size = 1 << (words.group - 1).bit_length()
    wide = np.zeros((len(times), size), np.uint8)
    wide[:, : words.group] = words.digits
    spelled = wide.view(f"u{size}").ravel().repeat(times).take(slots).view(np.uint8)
    return spelled if size == words.group else spelled.reshape(-1, size)[:, : words.group].reshape(-1)


def _broken() -> UsageError:
    return UsageError("the coded symbols are damaged")
