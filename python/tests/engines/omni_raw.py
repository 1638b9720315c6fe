"""A getter that speaks the connector's messages by hand, so that tests can stop it between any two
of them: claim and then neither read nor give back, read late, die."""

import time

import kvxfer
from kvxfer.vllm_omni import wire


class RawGetter:
    """One client of a node, with a region that answers are sent to."""

    def __init__(self, node, name="omni/pool/raw", nbytes=1 << 20):
        self.client = node.client("raw")
        self.name = name
        self.region = self.client.alloc(nbytes, access="r", publish=name, note=b"{}")
        self.events = []

    def wait_for(self, is_it, seconds=10):
        until = time.monotonic() + seconds
        while True:
            for event in self.events:
                if is_it(event):
                    self.events.remove(event)
                    return event
            if time.monotonic() > until:
                raise TimeoutError(f"only {self.events}")
            self.events += self.client.wait(0.1)

    def find(self, pool, address=""):
        found = self.client.find(address, pool)
        event = self.wait_for(lambda e: e.remote is found)
        assert event.type is kvxfer.EventType.IMPORT_UP, event
        return found

    def claim(self, owner, key, claim=1, expected=-1, seconds=10, address=""):
        """Posts a claim and gives the answer. ``address``: this node's, for an owner elsewhere."""
        owner.post(wire.Claim(claim, expected, key, self.name, address).pack())
        return self.answer(claim, seconds)

    def answer(self, claim, seconds=10):
        event = self.wait_for(lambda e: e.type is kvxfer.EventType.MESSAGE
                              and wire.unpack(e.payload).claim == claim, seconds)
        return wire.unpack(event.payload)

    def read(self, owner, grant, nbytes=None):
        """READs a grant and says so; gives the bytes."""
        n = grant.size if nbytes is None else nbytes
        self.client.read(self.region, owner, kvxfer.Ops([0], [grant.offset], n), tag=grant.put,
                         payload=wire.pack_read(grant.put, grant.claim)).wait(20)
        if n == grant.size:
            owner.post(wire.Done(grant.claim, grant.put, True).pack())
        return bytes(self.region.memory.buffer[:n])

    def close(self):
        self.client.close()
