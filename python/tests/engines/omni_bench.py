"""What an object costs from put to got: KVXFERD names the daemon; --two: two daemons, as two nodes.

3,300 and 1,611,700 bytes: what talker and thinker of Qwen3-Omni hand on. Medians of the medians of
7 runs. "after": put() plus get() with its metadata; "waiting": from the call of put() until a
get_with_deadline() that waits in another process has returned; "object": as "after", through the
package's serializer.
"""

import os
import statistics
import sys
import time

RUNS = 7


def put_all(connector, keys, size, is_object):
    import torch

    tensor = torch.zeros(size, dtype=torch.uint8)
    data = {"x": tensor[:size - 60], "meta": {"finished": False}} if is_object else tensor
    out = []
    for key in keys:
        begin = time.perf_counter()
        ok, _, metadata = connector.put("0", "1", key, data)
        out.append((time.perf_counter() - begin, metadata))
        assert ok
    return out


def get_all(connector, keys, metadata):
    out = []
    for key, one in zip(keys, metadata):
        begin = time.perf_counter()
        what, _ = connector.get("0", "1", key, one)
        out.append(time.perf_counter() - begin)
        if hasattr(what, "release"):
            what.release()
    return out


def get_waiting(connector, keys):
    out = []
    for key in keys:
        what, _ = connector.get_with_deadline("0", "1", key, deadline=time.monotonic() + 20)
        out.append(time.monotonic())
        what.release()
    return out


def put_paced(connector, keys, size):
    import torch

    tensor = torch.zeros(size, dtype=torch.uint8)
    time.sleep(0.1)
    out = []
    for key in keys:
        out.append(time.monotonic())
        connector.put("0", "1", key, tensor)
        time.sleep(0.004)
    return out


def one_run(sender, receiver, keys, size, mode):
    if mode == "waiting":
        receiver.send("run", get_waiting, keys)
        puts = sender.run(put_paced, keys, size)
        return statistics.median(got - put for put, got in zip(puts, receiver.result()))
    puts = sender.run(put_all, keys, size, mode == "object")
    gets = receiver.run(get_all, keys, [metadata for _, metadata in puts])
    return statistics.median(put + got for (put, _), got in zip(puts, gets))


def main():
    import importlib.util
    import pathlib

    import omni_bench  # the stage processes look for the functions there
    import omni_process

    spec = importlib.util.spec_from_file_location(
        "node", pathlib.Path(__file__).resolve().parents[1] / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    Node, one_run = conftest.Node, omni_bench.one_run
    nodes = [Node(), Node()] if "--two" in sys.argv else [Node()]
    sender = omni_process.StageProcess(nodes[0].socket, zmq_port=50051, memory_pool_size=64 << 20)
    receiver = omni_process.StageProcess(
        nodes[-1].socket, role="receiver", sender_host=sender.get_connection_info()["host"],
        sender_zmq_port=50051, memory_pool_size=64 << 20)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {len(nodes)} daemon(s), us")
    for size, n in ((3300, 200), (1611700, 25)):
        for mode in ("after", "waiting", "object"):
            runs = sorted(1e6 * one_run(sender, receiver, [f"{mode}{size}-{run}-{i}"
                                                           for i in range(n)], size, mode)
                          for run in range(RUNS))
            print(f"{size:8} {mode:8} {statistics.median(runs):8.1f}  "
                  f"({runs[0]:.1f} .. {runs[-1]:.1f})", flush=True)
    sender.stop()
    receiver.stop()
    for node in nodes:
        node.stop()


if __name__ == "__main__":
    main()
