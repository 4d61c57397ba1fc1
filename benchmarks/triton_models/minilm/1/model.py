"""MiniLM from text to sentence vector, for Triton's Python backend: all requests of a batch in one run."""

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # the backend's interpreter does not read it

import triton_python_backend_utils as pb_utils  # noqa: E402
from oip_embedder import Embedder  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        self.embedder = Embedder(os.environ["MINILM"])

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy() for request in requests]
        vectors = self.embedder.embed([text.decode() for texts in inputs for text in texts.ravel()])
        responses, start = [], 0
        for texts in inputs:
            part = vectors[start : start + len(texts)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", part)]))
            start += len(texts)
        return responses
