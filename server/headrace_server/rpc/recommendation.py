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
        name = "/headrace.v1.RecommendationService/Recommend"
        return (UnaryRpc(name=name, request_type=pb.RecommendRequest, start=self.recommend, light=_is_light),)

    def recommend(self, request: pb.RecommendRequest, context: RequestContext) -> Deferred:
        form = decode_item_fields(request.fields)
        query = decode_recommend(request, self._limits, form)
        return Deferred(self._job.submit(query, context), partial(encode_recommend, form=form))


def _is_light(request: pb.RecommendRequest) -> bool:
    """A few vectors alone: no ids to look up, no filter to evaluate, and a search that a scan's worker does.

    A catalog so small that it is searched here takes less time than the handing over would.
    """
    return (
        request.query.WhichOneof("kind") == "vectors"
        and not (request.exclude_ids or request.include_ids)
        and not (request.HasField("filter") or request.HasField("diversity"))
    )
