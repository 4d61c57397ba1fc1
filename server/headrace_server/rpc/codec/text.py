"""Messages of Rerank and Tokenize, which read nothing but texts."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import embedding_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.jobs.queries import RerankQuery, RerankResult, TokenizeQuery, TokenizeResult
from headrace_server.rpc.codec.checks import require_text
from headrace_server.rpc.codec.inputs import decode_texts
from headrace_server.rpc.codec.selector import decode_prepare_options, decode_selector, encode_usage, encode_version

__all__ = ["decode_rerank", "decode_tokenize", "encode_rerank", "encode_tokenize"]

_METHODS = {
    "cross_encoder": pb.RERANK_METHOD_CROSS_ENCODER,
    "embedding": pb.RERANK_METHOD_EMBEDDING,
}


def decode_rerank(request: pb.RerankRequest, limits: InputLimits) -> RerankQuery:
    """What is to be ordered. Raises ServingError INVALID_INPUT naming the field."""
    return RerankQuery(
        model=decode_selector(request.model),
        query=require_text(request.query, "query", limits.max_text_bytes, "max_text_bytes"),
        documents=decode_texts(request.documents, limits, "documents"),
        top_k=request.top_k,
        prepare=decode_prepare_options(request.truncation),
    )


def encode_rerank(result: RerankResult, documents: Sequence[str] | None = None) -> pb.RerankResponse:
    """Documents, most relevant first; with their texts where `documents`, those of the request, are given."""
    return pb.RerankResponse(
        documents=[
            pb.RankedDocument(
                index=ranked.index,
                score=ranked.score,
                document="" if documents is None else documents[ranked.index],
                usage=encode_usage(ranked.usage),
            )
            for ranked in result.documents
        ],
        method=_METHODS[result.method],
        model=encode_version(result.model),
    )


def decode_tokenize(request: pb.TokenizeRequest, limits: InputLimits) -> TokenizeQuery:
    """The texts that are to be tokenized. Raises ServingError INVALID_INPUT naming the field."""
    return TokenizeQuery(
        model=decode_selector(request.model),
        texts=decode_texts(request.texts, limits, "texts"),
        add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else True,
        truncate=request.truncate,
    )


def encode_tokenize(result: TokenizeResult) -> pb.TokenizeResponse:
    """The tokens of each text, in order."""
    return pb.TokenizeResponse(
        results=[
            pb.TokenizedText(
                tokens=[
                    pb.Token(id=token.id, piece=token.piece, start=token.start, end=token.end, special=token.special)
                    for token in text.tokens
                ],
                truncated=text.truncated,
            )
            for text in result.results
        ],
        model=encode_version(result.model),
    )
