"""headrace.v1.RecommendationService."""

from __future__ import annotations

from functools import partial
from typing import Any

from headrace.v1 import recommendation_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.jobs.recommend import Recommend
from headrace_server.rpc.codec.items import decode_item_fields
from headrace_server.rpc.codec.recommendation import decode_recommend, encode_recommend
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.serving.context import RequestContext

__all__ = ["RecommendationService"]


class RecommendationService:
    """Recommends items of a catalog."""

    def __init__(self, job: Recommend, limits: InputLimits) -> None:
        self._job = job
        self._limits = limits

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any], ...]:
        # Never light: looking ids up and searching even a small catalog may take longer than a poller should.
        name = "/headrace.v1.RecommendationService/Recommend"
        return (UnaryRpc(name=name, request_type=pb.RecommendRequest, start=self.recommend),)

    def recommend(self, request: pb.RecommendRequest, context: RequestContext) -> Deferred:
        form = decode_item_fields(request.fields)
        query = decode_recommend(request, self._limits, form)
        return Deferred(self._job.submit(query, context), partial(encode_recommend, form=form))
