"""Streams over gRPC from a process of its own: for each line of prompts, tokens a second as `generation_headrace.py`,
and the milliseconds of CPU that reading each took here, on the cores that the server has.

python benchmarks/generation_client.py ADDRESS
"""

from __future__ import annotations

import json
import sys
import threading
import time

from headrace_client import Client


def main() -> None:
    client = Client(sys.argv[1])

    def read(prompt: list[int], num_tokens: int) -> None:
        for _ in client.generate("model", prompt, max_tokens=num_tokens, ignore_end=True):
            pass

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        num_tokens = asked["num_tokens"]
        threads = [threading.Thread(target=read, args=(prompt, num_tokens)) for prompt in asked["prompts"]]
        began, cpu_began = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = len(threads) * num_tokens
        cpu_ms = (time.process_time() - cpu_began) * 1e3 / total
        print(json.dumps({"tok_s": total / (time.perf_counter() - began), "client_cpu_ms": cpu_ms}), flush=True)


if __name__ == "__main__":
    main()
