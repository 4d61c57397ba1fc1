"""ModelInfer on plain grpc.aio, nothing of ours but the messages: prints its address, then its CPU time a line read.

    python benchmarks/oip_aio_server.py MINILM-FOLDER

identity answers in its coroutine; minilm.embed takes what is queued, up to 8 texts, on two threads.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from concurrent.futures import Future

import grpc
import grpc.aio
import numpy as np
from echo_server import report_cpu
from oip_embedder import Embedder

from headrace_server.rpc.inference import messages as pb

_MAX_BATCH = 8


class MicroBatches:
    """Texts from many callers in runs of those that wait."""

    def __init__(self, folder: str, num_threads: int = 2) -> None:
        self._queue: queue.SimpleQueue[tuple[str, Future[bytes]]] = queue.SimpleQueue()
        self._embedder = Embedder(folder)
        for _ in range(num_threads):
            threading.Thread(target=self._work, daemon=True).start()

    def embed(self, text: str) -> Future[bytes]:
        future: Future[bytes] = Future()
        self._queue.put((text, future))
        return future

    def _work(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < _MAX_BATCH:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            vectors = self._embedder.embed([text for text, _ in batch])
            for (_, future), vector in zip(batch, vectors, strict=True):
                future.set_result(vector.tobytes())


async def serve(folder: str) -> None:
    batches = MicroBatches(folder)

    async def infer(request: pb.ModelInferRequest, context: object) -> pb.ModelInferResponse:
        tensor, data = request.inputs[0], request.raw_input_contents[0]
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        if tensor.name == "text_input":
            raw = await asyncio.wrap_future(batches.embed(data[4:].decode()))
            response.outputs.add(name="embedding", datatype="FP32", shape=(1, len(raw) // 4))
        else:
            array = np.frombuffer(data, np.float32).reshape(tuple(tensor.shape))
            raw = array.tobytes()
            response.outputs.add(name="OUTPUT0", datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(raw)
        return response

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(report_cpu)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
