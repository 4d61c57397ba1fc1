"""Streams over gRPC from a process of its own: for each line of prompts, tokens a second as `generation_headrace.py`.

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
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"tok_s": len(threads) * num_tokens / (time.perf_counter() - began)}), flush=True)


if __name__ == "__main__":
    main()
