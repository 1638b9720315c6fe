"""An engine process for the tests of kvxfer.pd, to be killed. Commands come as lines on stdin:
offer ID SEED BLOCKS | add ID LAYER | seal ID | hold ID SEED BLOCKS | expect ID BLOCKS | fetch ID
BLOCKS | cancel ID | wait | exit. BLOCKS: 1,2,3. Answers: one line each, "ok" or what wait()
gave."""

import sys
import types

from pd_ranks import TestRank

from kvxfer import pd


def main(socket, name, other_address, other, n_blocks, tokens):
    rank = TestRank(types.SimpleNamespace(socket=socket), name, n_blocks=int(n_blocks),
                    tokens=int(tokens))
    source = pd.Endpoint(other_address, other)
    things, blocks = {}, {}
    print("ready", rank.rank.address or "-", flush=True)
    for line in sys.stdin:
        verb, *args = line.split()
        answer = "ok"
        id_ = args[0] if args else ""
        ids = [int(n) for n in args[-1].split(",")] if verb in ("offer", "hold", "expect",
                                                                "fetch") else []
        if verb in ("offer", "hold"):
            rank.fill(int(args[1]), ids)
            blocks[id_] = ids
            things[id_] = (rank.rank.offer(id_, deadline=60) if verb == "offer" else
                           rank.rank.hold(id_, {0: (0, ids)}, deadline=60))
        elif verb == "add":
            layer = int(args[1])
            things[id_].add(0, 0, blocks[id_], layers=range(layer, layer + 1))
        elif verb == "seal":
            things[id_].seal()
        elif verb in ("expect", "fetch"):
            things[id_] = getattr(rank.rank, verb)(id_, source, {0: (0, ids)}, deadline=60)
        elif verb == "cancel":
            things[id_].cancel()
        elif verb == "wait":
            answer = " ".join(f"{o.role}:{o.id}:{o.ok}:{type(o.error).__name__}"
                              for o in rank.rank.wait(20))
        elif verb == "exit":
            rank.close()
            return
        print(answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
