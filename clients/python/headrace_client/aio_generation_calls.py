"""The asynchronous client's calls for generated text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Unpack

from headrace.v1 import generation_pb2 as pb
from headrace_client.generation import (
    Generated,
    GenerateOptions,
    GenerationDelta,
    Prompt,
    delta_of,
    generate_request,
    generated,
)
from headrace_client.results import Timings

__all__ = ["AsyncGenerationCalls"]


class AsyncGenerationCalls(ABC):
    """What `AsyncClient` does with text generators: as `GenerationCalls`. Every failure is a HeadraceError."""

    _generation: Any

    async def generate(
        self, model: str, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[GenerationDelta, None]:
        """New text, piece by piece as it is made; closing the generator cancels it. The last delta holds the summary.

        prompt  a text, token ids, or a chat: messages such as {"role": "user", "content": "Hello"}
        """
        request = generate_request(model, prompt, **options)
        async with aclosing(self._receive(self._generation.Generate, request, timeout_s)) as responses:
            async for response in responses:
                yield delta_of(response)

    async def generate_text(
        self, model: str, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """The same, answered whole."""
        request = pb.GenerateTextRequest(request=generate_request(model, prompt, **options))
        response, _ = await self._call(self._generation.GenerateText, request, timeout_s)
        return generated(response)

    @abstractmethod
    async def _call(
        self, method: Callable[..., Any], request: object, timeout_s: float | None
    ) -> tuple[Any, Timings]: ...

    @abstractmethod
    def _receive(
        self, method: Callable[..., Any], request: object, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]: ...
