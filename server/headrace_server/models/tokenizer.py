"""Texts to token ids and back to places in the text, with one fast tokenizer shared by every thread.

The tokenizer's own padding and truncation are turned off at loading: padding belongs to the batch, and a cut is made
here, by sequence and side, so that the special tokens stay whole and the caller is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from headrace_server.errors import Reason, ServingError
from headrace_server.models.folder import model_invalid
from headrace_server.models.tokenizer_parts import read_tokenizer

__all__ = ["EncodedText", "TextTokenizer", "Tokenization"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text (or pair) as the model reads it: ids and type_ids i64[s]; num_tokens counts before the cut."""

    ids: Ids
    type_ids: Ids
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of one text: all tuples of one length.

    byte_offsets  [start, end) in the text's UTF-8; equal for tokens the tokenizer added
    char_offsets  the same in characters
    special       added by the tokenizer ([CLS], </s>)
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    byte_offsets: tuple[tuple[int, int], ...]
    char_offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    truncated: bool


class TextTokenizer:
    """A tokenizer.json. Immutable once built, and thread-safe.

    max_length  tokens the model reads, special ones included; 0: no limit
    pad_id      the id that fills a row of a batch
    """

    def __init__(
        self, definition: str, *, max_length: int = 0, pad_id: int | None = None, truncation_side: str = "right"
    ) -> None:
        try:
            tokenizer = read_tokenizer(definition)
            padding = tokenizer.padding
            tokenizer.no_padding()
            tokenizer.no_truncation()
            self._num_special = {pair: int(tokenizer.num_special_tokens_to_add(pair)) for pair in (False, True)}
        except BaseException as error:
            raise _as_serving_error(
                error,
                model_invalid(
                    f"tokenizer.json: not a readable tokenizer ({_first_line(error)}); save it again",
                ),
            ) from None
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.truncation_side = truncation_side
        self.pad_id = pad_id if pad_id is not None else int(padding["pad_id"]) if padding else 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The library's own, shared: not to be changed."""
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Ids the tokenizer can give, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def num_special_tokens(self) -> int:
        """Tokens added around one text."""
        return self._num_special[False]

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, texts: Sequence[str | tuple[str, str]], *, side: str = "") -> list[EncodedText]:
        """Token ids of each text or pair, cut to `max_length` at `side` ("": the tokenizer's own).

        A pair is cut from its longer text first, as its training was.
        """
        encodings = self._encode(list(texts), add_special_tokens=True, offsets=False)
        encoded = []
        for encoding in encodings:
            ids = np.array(encoding.ids, dtype=np.int64)
            types = np.array(encoding.type_ids, dtype=np.int64)
            num_tokens = len(ids)
            truncated = 0 < self.max_length < num_tokens
            if truncated:
                kept = self._kept(encoding, side)
                ids, types = ids[kept], types[kept]
            encoded.append(EncodedText(ids, types, num_tokens, truncated))
        return encoded

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of one text, uncut."""
        (encoding,) = self._encode([text], add_special_tokens=add_special_tokens, offsets=False)
        ids: list[int] = encoding.ids
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of one text in which added tokens are not looked for: their spelling is text like any other."""
        normalizer, splitter, model = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer, self._tokenizer.model
        try:
            normal = text if normalizer is None else normalizer.normalize_str(text)
            pieces = [normal] if splitter is None else [piece for piece, _ in splitter.pre_tokenize_str(normal)]
            return [token.id for piece in pieces for token in model.tokenize(piece)]
        except BaseException as error:
            raise _as_serving_error(
                error, ServingError(Reason.INTERNAL, "the tokenizer failed", detail=repr(error))
            ) from None

    def tokenize(
        self, text: str, *, add_special_tokens: bool = True, truncate: bool = False, side: str = ""
    ) -> Tokenization:
        """The tokens of `text` and where each stands; `truncate` cuts as the model would."""
        (encoding,) = self._encode([text], add_special_tokens=add_special_tokens, offsets=True)
        ids = encoding.ids
        truncated = truncate and 0 < self.max_length < len(ids)
        kept: Any = self._kept(encoding, side) if truncated else range(len(ids))
        offsets, pieces, sequences = encoding.offsets, encoding.tokens, encoding.sequence_ids
        starts = None if text.isascii() else _byte_positions(text)
        characters = tuple(offsets[at] for at in kept)
        return Tokenization(
            ids=tuple(ids[at] for at in kept),
            tokens=tuple(pieces[at] for at in kept),
            byte_offsets=characters
            if starts is None
            else tuple((starts[first], starts[last]) for first, last in characters),
            char_offsets=characters,
            special=tuple(sequences[at] is None for at in kept),
            truncated=truncated,
        )

    def _encode(self, texts: list[str | tuple[str, str]], *, add_special_tokens: bool, offsets: bool) -> list[Encoding]:
        # The batch calls release the GIL, the single ones do not.
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return encode(texts, add_special_tokens=add_special_tokens)
        except BaseException as error:
            raise _as_serving_error(
                error, ServingError(Reason.INTERNAL, "the tokenizer failed", detail=repr(error))
            ) from None

    def _kept(self, encoding: Encoding, side: str) -> npt.NDArray[np.intp]:
        """Positions that stay: every added token, and of each text as much as fits."""
        sequences = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
        lengths = [int(np.count_nonzero(sequences == owner)) for owner in (0, 1)]
        room = max(0, self.max_length - int(np.count_nonzero(sequences == -1)))
        first, second = lengths
        if first + second > room:
            if min(lengths) > room // 2:
                first = room - room // 2 if lengths[0] >= lengths[1] else room // 2
                second = room - first
            elif lengths[0] > lengths[1]:
                first = room - second
            else:
                second = room - first
        stays = sequences == -1
        for owner, count in ((0, first), (1, second)):
            places = np.flatnonzero(sequences == owner)
            left = (side or self.truncation_side) == "left"
            stays[places[len(places) - count :] if left else places[:count]] = True
        return np.flatnonzero(stays)[: self.max_length]


def _byte_positions(text: str) -> list[int]:
    """Byte offset of each character of `text`, and of its end."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points > 0x7F).astype(np.int64) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    positions: list[int] = np.concatenate(([0], np.cumsum(widths))).tolist()
    return positions


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _as_serving_error(error: BaseException, instead: ServingError) -> BaseException:
    """`instead` for a failure of the tokenizer, its panics included, which are no Exception; others pass through."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return instead
    return error
