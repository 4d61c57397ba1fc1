"""The identity, for Triton's Python backend."""

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # the backend's interpreter does not read it

import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())]
            )
            for request in requests
        ]
