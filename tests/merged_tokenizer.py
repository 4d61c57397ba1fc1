"""Definitions of byte-pair tokenizers of any size, as the library writes them."""

from __future__ import annotations

from typing import Any

__all__ = ["added_token", "merged_tokenizer"]


def _merged_vocabulary(num_merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = [chr(code) for code in range(0x61, 0x7B)] + [chr(code) for code in range(0x100, 0x180)]
    tokens, merges = list(letters), list[tuple[str, str]]()
    for length in range(1, 4):
        for left in [token for token in tokens if len(token) == length]:
            for right in letters:
                if len(merges) == num_merges:
                    return {token: index for index, token in enumerate(tokens)}, merges
                merges.append((left, right))
                tokens.append(left + right)
    raise AssertionError("too few letters")


def added_token(content: str, index: int, **flags: bool) -> dict[str, Any]:
    given = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **given, **flags}


def merged_tokenizer(num_merges: int = 400, *, as_text: bool = False, **options: Any) -> dict[str, Any]:
    vocabulary, merges = _merged_vocabulary(num_merges)
    size = len(vocabulary)
    vocabulary["<pad>"] = size
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token("<pad>", size),
            added_token("<mask>", size + 1, lstrip=True, rstrip=True),
            added_token("<added>", size + 2, normalized=True, special=False),
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [" ".join(merge) for merge in merges] if as_text else [list(merge) for merge in merges],
            **options,
        },
    }
