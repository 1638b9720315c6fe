"""An engine of vllm_harness.py in a process of its own, to be killed. Takes requests as JSON lines,
steps until its input ends, and says what it has received.

    python vllm_process.py SOCKET MODEL_PATH OPTIONS_AS_JSON
"""

import json
import select
import sys

import vllm_harness


class Node:
    def __init__(self, socket):
        self.socket = socket


def main(socket, path, options):
    engine = vllm_harness.Engine(Node(socket), path, **json.loads(options))
    print(json.dumps({"number": engine.number, "daemon": engine.daemon}), flush=True)
    told = set()
    while True:
        if select.select([sys.stdin], [], [], 0.001)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            word = json.loads(line)
            engine.add(word["tokens"], word["params"], request_id=word["id"], max_tokens=2)
        if engine.busy():
            engine.step()
        steps = {id: n for id, n in engine.computed().items() if (id, n) not in told}
        told |= set(steps.items())
        for id, n in steps.items():
            print(json.dumps({"id": id, "computed": n}), flush=True)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
