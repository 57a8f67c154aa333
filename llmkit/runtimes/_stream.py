"""Turns the bytes of generated tokens into text that can be shown: complete UTF-8, without stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed it the bytes of each token; it returns the text that is certain to belong to the answer.

    A character whose bytes are spread over several tokens appears when its last byte arrives. Text that may be the
    beginning of a stop string is held back until the next tokens decide. Bytes that can never become UTF-8 turn into
    U+FFFD, as in Hugging Face's decoders; a character still incomplete at the end is left out.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """Text that became certain with `data`; after a stop string (`stopped`) always empty."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data)
        if not self._stop:
            text, self._held = self._held, ""
            return text
        end = min((at for at in map(self._held.find, self._stop) if at >= 0), default=-1)
        if end >= 0:
            self.stopped = True
            text, self._held = self._held[:end], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        text, self._held = self._held, ""
        return "" if self.stopped else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
