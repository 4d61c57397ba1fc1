"""A small byte-level tokenizer: each byte is a token, a few common words are one, and three special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

__all__ = ["END", "MASK_VOCABULARY", "START", "byte_tokenizer", "definition"]

START, END, BREAK = 0, 1, 2
MASK_VOCABULARY = 3 + 256 + 8
_WORDS = ("th", "he", "the", "an", "and", "in", "er", "is")
_MERGES = (("t", "h"), ("h", "e"), ("th", "e"), ("a", "n"), ("an", "d"), ("i", "n"), ("e", "r"), ("i", "s"))


def byte_tokenizer() -> Tokenizer:
    """267 tokens: <s> 0, </s> 1, <br> 2, then bytes in the alphabet's order, then words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(("<s>", "</s>", "<br>", *alphabet, *_WORDS))}
    tokenizer: Tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(_MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>", "<br>")])
    return tokenizer


def definition() -> str:
    """The content of its tokenizer.json."""
    text: str = byte_tokenizer().to_str()
    return text
