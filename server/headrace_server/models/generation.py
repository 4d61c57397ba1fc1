"""GenerationSpec: what a folder says of a text generator: its cache, its ends, its defaults, its template."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_server.config import DecoderPolicy

__all__ = ["CacheKind", "GenerationDefaults", "GenerationSpec", "GraphNames"]


class CacheKind(enum.Enum):
    """How the graph keeps keys and values."""

    SHARED_BUFFER = "shared_buffer"  # past and present are one preallocated memory (GroupQueryAttention)
    COPIED = "copied"  # past goes in, past and the new part come out (optimum, transformers.js)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """How tokens are chosen where a request does not say: generation_config.json, else greedy.

    forbidden   tokens that are never chosen, unless a request gives them a bias
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    forbidden: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNames:
    """What the inputs and outputs of graphs that copy their cache are called; the defaults are those of optimum.

    states             decoder input: decoder output that is its value in the next step
    first              decoder input: encoder output that is its first value; others begin empty
    memory             decoder input: encoder output, the same in every step
    fixed_after_first  states that only the first step makes (keys and values of the source)
    source_mask        of the encoder, memory_mask of the decoder; each token is marked by `mask_of_tokens`
    """

    tokens: str = "input_ids"
    logits: str = "logits"
    states: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, str] = field(default_factory=dict)
    fixed_after_first: frozenset[str] = frozenset()
    source: str = "input_ids"
    source_mask: str = "attention_mask"
    memory_mask: str = "encoder_attention_mask"
    mask_of_tokens: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """A generator's shape and meaning, as read from its folder.

    decoder            the graph that makes tokens
    encoder            the graph that reads the source text; None: a decoder alone
    names              of graphs that copy their cache
    context_length     positions that the model was made for
    end_ids            tokens that end a text
    decoder_start_id   first token of the new text of encoder–decoder models
    chat_template      jinja source; "": the model has none
    special_tokens     bos_token, eos_token, … by name, as chat templates use them
    """

    decoder: Path
    encoder: Path | None = None
    cache: CacheKind
    names: GraphNames = field(default_factory=GraphNames)
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocabulary_size: int
    context_length: int
    end_ids: frozenset[int]
    decoder_start_id: int | None = None
    chat_template: str = ""
    special_tokens: dict[str, str] = field(default_factory=dict)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    policy: DecoderPolicy = field(default_factory=DecoderPolicy)

    @property
    def max_length(self) -> int:
        """Tokens of one slot."""
        return min(self.policy.max_length or 4096, self.context_length)
