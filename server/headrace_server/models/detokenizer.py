"""Detokenizer: token ids to text as they come, never a part of a character."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

__all__ = ["Detokenizer"]

_CONTEXT = 6  # tokens of the prompt that the first new ones are read after: some tokenizers drop a leading space
_UNFINISHED = "\ufffd"
_MOST_UNFINISHED = 3  # tokens that may be the beginning of a character: it has four bytes at most, a token at least one


class Detokenizer:
    """The text of one sequence's new tokens, piece by piece. One thread.

    A token may end within a character: its bytes are kept back until the character is whole. New tokens are read with
    the few before them, since what a token's text is can depend on what it follows.

    prompt  the tokens before the new ones, of which the last few count
    """

    __slots__ = ("_begin", "_ids", "_read", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, keep_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = not keep_special_tokens
        self._ids = [int(token) for token in prompt[-_CONTEXT:]]
        self._begin, self._read = 0, len(self._ids)

    def step(self, token: int) -> str:
        """The whole characters that `token` completes; "" while one is unfinished."""
        self._ids.append(token)
        piece = self._unread()
        if not piece.endswith(_UNFINISHED):
            self._advance()
            return piece
        certain = len(self._ids) - _MOST_UNFINISHED
        if certain <= self._read or not self._borders(certain):
            return ""
        # Bytes that are no text at all: waiting for the end of such a run would read it anew at each of its tokens.
        piece = self._unread(certain)
        # What a byte is part of, those before it say: as many stay as may begin a character.
        self._begin, self._read = max(self._begin, certain - _MOST_UNFINISHED - 1), certain
        self._forget()
        return piece

    def finish(self) -> str:
        """What was kept back: bytes that never became a character, as U+FFFD."""
        piece = self._unread()
        self._advance()
        return piece

    def _borders(self, end: int) -> bool:
        """Whether no character goes on from before token `end` to behind it."""
        return self._text(self._ids[self._begin :]).startswith(self._text(self._ids[self._begin : end]))

    def _unread(self, end: int | None = None) -> str:
        known = self._text(self._ids[self._begin : self._read])
        return self._text(self._ids[self._begin : end])[len(known) :]

    def _advance(self) -> None:
        self._begin, self._read = self._read, len(self._ids)
        self._forget()

    def _forget(self) -> None:
        if self._begin > 256:
            self._read -= self._begin
            del self._ids[: self._begin]
            self._begin = 0

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text
