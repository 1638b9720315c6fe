"""A model of what the daemons promise (docs/guarantees.md, client.h), so small that all orders of
events can be gone through. It moves no bytes and proves nothing about kvxferd: test_pd_rank.py and
test_pd_faults.py run on real daemons. It brings the two sides of kvxfer.pd into the situations that
a clock hardly ever shows.

Two ranks, "P" and "D". What one sends to the other (messages, arrivals, the loss of its import)
goes through one queue in order; each rank reads its events one at a time. Every step is a choice.
"""

import types

from kvxfer import errors, pd
from kvxfer.events import Event, EventType, Op
from kvxfer.pd import geometry, messages, stream
from kvxfer.pd.hub import RankHub

GROUP = pd.Group("main", ("l0", "l1"), 4, 64, (pd.Part("k", 16), pd.Part("v", 16)))


class Broken(AssertionError):
    """A promise of kvxfer.pd was broken."""


class Transfer:
    """Under way from submission to its end: so long bytes may move."""

    def __init__(self, world, owner, op, tag, streaming):
        self.world, self.owner, self.op, self.tag = world, owner, op, tag
        self.id = world.number()
        self.sealed, self.cancelled, self.over = not streaming, False, False
        self.payload = b""

    def append(self, blocks):
        self._check()

    def seal(self, payload=b""):
        self._check()
        self.sealed, self.payload = True, payload

    def cancel(self):
        if self.owner.lost:
            raise errors.DaemonLost("lost")
        self.cancelled = True
        return not self.over

    def _check(self):
        if self.owner.lost:
            raise errors.DaemonLost("lost")
        if self.over or self.sealed:
            raise errors.NotFound("ended")


class Import:
    def __init__(self, side):
        self.side, self.up, self.gone = side, False, False
        self.stale = False  # what it stands for is gone, and this rank has not heard of it yet

    def post(self, data):
        side = self.side
        if side.lost or self.gone:
            raise errors.DaemonLost("lost")
        if not self.stale:
            side.world.send(side, Event_(EventType.MESSAGE, payload=bytes(data)))

    def close(self):
        self.gone = True


def Event_(kind, **fields):
    event = Event(kind)
    for name, value in fields.items():
        setattr(event, name, value)
    if event.error is not None:
        event.text = event.error.text
    return event


class Side:
    """One rank's client and daemon."""

    limits = types.SimpleNamespace(max_transfers=1000)

    def __init__(self, world, name):
        self.world, self.name, self.address = world, name, name
        self.lost = False  # its daemon is
        self.dead = False  # its process is
        self.queue = []  # events to be read
        self.imports = []
        self.transfers = []
        self.hub = RankHub(self, f"{name}/dp0/pp0/tp0", 5.0)
        self.hub.geometry = geometry.Geometry([GROUP], life=world.number())
        self.hub._regions = [object()]
        self.hub.now = lambda: world.time
        self.hub._ring = lambda: None
        self.hub._safely = lambda call, *args: call(*args)  # here a defect ends the test
        self.hub.guard = lambda whom, call, *args: call(*args)
        self.hub._closer.add = lambda imports: [import_.close() for import_ in imports]
        finish = self.hub.finish
        self.outcomes = []

        def finished(thing, outcome):
            self.outcomes.append(outcome)
            finish(thing, outcome)
            world.check()

        self.hub.finish = finished

    # ---- as kvxfer.Client

    def find(self, address, name):
        if self.lost:
            raise errors.DaemonLost("lost")
        found = Import(self)
        self.imports.append(found)
        return found

    def submit(self, op, region, remote, blocks, *, tag, deadline, streaming, label):
        if self.lost:
            raise errors.DaemonLost("lost")
        if remote.gone:
            raise errors.Closed("closed")
        transfer = Transfer(self.world, self, op, tag, streaming)
        self.transfers.append(transfer)
        if remote.stale:
            self.world.end(transfer, errors.PeerLost("gone"), tell=False)
        self.world.check()
        return transfer

    def poll(self):
        return [self.queue.pop(0)]


class World:
    """Both sides, and all that may happen next."""

    def __init__(self, mode):
        self.mode, self.time, self.n = mode, 0.0, 0
        self.P, self.D = Side(self, "P"), Side(self, "D")
        self.sides = {"P": self.P, "D": self.D}
        self.wire = {"P": [], "D": []}  # what goes to it
        self.things = {}
        self.complete = False

    def number(self):
        self.n += 1
        return self.n

    def other(self, side):
        return self.D if side is self.P else self.P

    def send(self, side, event):
        self.wire[self.other(side).name].append(event)

    # ---- the promise

    def check(self):
        """Nothing moves into or out of memory whose Outcome was told."""
        running = any(not t.over for side in self.sides.values() for t in side.transfers)
        for side in self.sides.values():
            if running and side.outcomes and not side.dead:
                raise Broken(f"{side.name} was told {side.outcomes[-1]}, but something moves")

    # ---- calls of the engines

    def source(self):
        hub = self.P.hub
        if self.mode == "write":
            offer = pd.Offer(hub, hub.sources, "r", 60, "")
            self.things["P"] = offer
            hub.sources.begin(offer)
        else:
            hold = pd.Hold(hub, hub.sources, "r", {0: (0, [1, 2])}, 60, "")
            self.things["P"] = hold
            hub.sources.begin(hold)

    def add(self, layer):
        self.complete = layer == 1 and not self.things["P"].ended
        self.things["P"].add(0, 0, [1, 2], layers=range(layer, layer + 1))

    def seal(self):
        self.things["P"].seal()

    def sink(self):
        kind = pd.Expect if self.mode == "write" else pd.Fetch
        thing = kind(self.D.hub, "r", pd.Endpoint("P", "P"), {0: (0, [5, 6])}, 50, "", None, b"")
        self.things["D"] = thing
        self.D.hub.begin(thing)

    # ---- what may happen

    def steps(self, calls, faults):
        """(name, call) of everything that may happen now. ``calls``: per engine its next call."""
        out = []
        for name, waiting in calls.items():
            if waiting and not self.sides[name].dead:
                out.append(((name, "calls", waiting[0]), lambda w=waiting: self.call(w.pop(0))))
        for side in self.sides.values():
            if side.queue and not side.dead:
                out.append(((side.name, "reads", side.queue[0]), lambda s=side: self.read(s)))
            if self.wire[side.name]:
                out.append((("to", side.name, self.wire[side.name][0]),
                            lambda s=side: self.deliver(s)))
            for import_ in side.imports:
                if not import_.up and not import_.gone and not side.lost and not side.dead:
                    out.append(((side.name, "finds"), lambda s=side, i=import_: self.found(s, i)))
            for transfer in side.transfers:
                if not transfer.over and transfer.cancelled:
                    out.append((("a transfer ends, cancelled",), lambda t=transfer: self.end(
                        t, errors.Cancelled("by the submitter"))))
                if not transfer.over and transfer.sealed:
                    out.append((("a transfer ends well",), lambda t=transfer: self.end(t, None)))
        for fault in list(faults):
            call = getattr(self, "fault_" + fault.split()[0])(*fault.split()[1:])
            if call is not None:
                out.append((("FAULT", fault), lambda f=fault, c=call: (faults.remove(f), c())))
        return out

    def call(self, words):
        verb, *args = words.split()
        getattr(self, verb)(*map(int, args))

    def read(self, side):
        side.hub._turn(True)
        if not side.hub._alive and not side.queue:
            side.lost = False  # the daemon is back, the hub's thread publishes again
            side.hub.geometry = geometry.Geometry([GROUP], life=self.number())
            side.hub._alive = True
            for peer in list(side.hub._peers.values()):
                peer.restart()

    def deliver(self, side):
        event = self.wire[side.name].pop(0)
        if not side.lost and not side.dead:
            if event.type is EventType.IMPORT_LOST:
                self.lose_imports(side, event.error, lambda import_: import_.stale)
            else:
                side.queue.append(event)

    def found(self, side, import_):
        other = self.other(side)
        if other.dead or other.lost:
            import_.gone = True
            side.queue.append(Event_(EventType.IMPORT_LOST, remote=import_,
                                     error=errors.NotFound("not published")))
        else:
            import_.up = True
            side.queue.append(Event_(EventType.IMPORT_UP, remote=import_,
                                     payload=geometry.pack_note(other.hub.geometry)))

    def end(self, transfer, error, tell=True):
        """Its last byte has moved. Both are told."""
        transfer.over = True
        fields = {"op": transfer.op, "tag": transfer.tag, "error": error, "bytes": 1,
                  "payload": transfer.payload, "transport": "copy"}
        side = transfer.owner
        if not side.dead:
            side.queue.append(Event_(EventType.TERMINAL, transfer=transfer, **fields))
        if tell:
            self.send(side, Event_(EventType.ARRIVAL, **fields))

    def lose_imports(self, side, error, which):
        for import_ in side.imports:
            if import_.up and not import_.gone and which(import_):
                import_.gone = True
                side.queue.append(Event_(EventType.IMPORT_LOST, remote=import_, error=error))

    def forget(self, side):
        """What the other side has imported of this one is void."""
        for import_ in self.other(side).imports:
            import_.stale = import_.up

    def end_all(self, error):
        for side in self.sides.values():
            for transfer in side.transfers:
                if not transfer.over:
                    self.end(transfer, error)

    # ---- what may go wrong: the call, or None where it cannot happen now

    def fault_cancel(self, name):
        thing = self.things.get(name)
        return thing and not thing.ended and (lambda: thing.cancel("test")) or None

    def fault_deadline(self, name):
        thing = self.things.get(name)

        def call():
            thing._until = 0
            thing._on_deadline()

        return thing and not thing.ended and call or None

    def fault_fails(self):
        running = [t for side in self.sides.values() for t in side.transfers if not t.over]
        return running and (lambda: self.end(running[0], errors.TransportError("cable"))) or None

    def fault_kill(self, name):
        """The process: its transfers end, and the other side hears of it behind all that."""
        side = self.sides[name]

        def call():
            side.dead = True
            side.queue.clear()
            self.forget(side)
            self.end_all(errors.ClientLost("killed"))
            self.wire[name].clear()
            self.send(side, Event_(EventType.IMPORT_LOST, error=errors.ClientLost("killed")))

        return call

    def fault_daemon(self, name):
        side = self.sides[name]
        if side.dead or side.lost:
            return None

        def call():
            # The other node hears of it from its own daemon; what was on the way is gone.
            mine = [t for t in side.transfers if not t.over]
            self.forget(side)
            self.end_all(errors.PeerLost("gone"))
            self.wire[name].clear()
            for transfer in mine:
                for event in side.queue:
                    if event.transfer is transfer:
                        event.error = errors.DaemonLost("lost")
            side.lost = True
            side.queue.append(Event_(EventType.DAEMON_LOST, error=errors.DaemonLost("lost")))
            self.send(side, Event_(EventType.IMPORT_LOST, error=errors.PeerLost("gone")))

        return call

    def fault_unsure(self, name):
        """A message cannot be delivered: this rank loses its import, the last message and what
        follows; the other side lives on."""
        side = self.sides[name]
        if side.lost or side.dead or not any(i.up and not i.gone for i in side.imports):
            return None

        def call():
            out = self.wire[self.other(side).name]
            for event in [event for event in out if event.type is EventType.MESSAGE]:
                out.remove(event)
            self.lose_imports(side, errors.Quota("it does not read its events"),
                              lambda import_: True)

        return call

    # ---- time

    def advance(self):
        """Nothing else can happen: the next alarm. False: there is none."""
        alarms = [(side.hub._alarms.next, name) for name, side in self.sides.items()
                  if len(side.hub._alarms) and not side.dead]
        if not alarms:
            return False
        when, name = min(alarms)
        self.time = max(self.time, when)
        self.sides[name].hub._turn(False)
        return True

    def state(self, calls, faults):
        """All that the future depends on, but for times and numbers."""
        return (tuple(map(tuple, calls.values())), tuple(faults), round(self.time),
                *(part for side in self.sides.values() for part in self._state_of(side)))

    def _state_of(self, side):
        hub, thing = side.hub, self.things.get(side.name)
        events = tuple(map(_event_state, side.queue)), tuple(
            map(_event_state, self.wire[side.name]))
        imports = tuple((i.up, i.stale) for i in side.imports if not i.gone)
        transfers = tuple((t.sealed, t.cancelled, t.payload) for t in side.transfers if not t.over)
        peers = tuple((p.up, p.lost, len(p._outbox), len(p.watchers)) for p in hub._peers.values())
        sources = (tuple(hub.sources._things), tuple(hub.sources._waiting),
                   tuple(hub.sources._failed), tuple(hub.sources._unwanted))
        return (side.lost, side.dead, len(side.outcomes), events, imports, transfers, peers,
                sources,
                hub._alive, len(hub._alarms), _thing_state(thing))

    def open(self):
        return [name for name, thing in self.things.items()
                if not thing.ended and not self.sides[name].dead]


def _event_state(event):
    kind = messages.unpack(event.payload[20:]).kind if event.type is EventType.MESSAGE else 0
    return event.type, kind, type(event.error), event.payload == stream.MORE


def _thing_state(thing):
    if thing is None:
        return None
    parts = getattr(thing, "_dests", None) or getattr(thing, "_srcs", {})
    return (thing.ended, type(thing._error), getattr(thing, "_sealed", 0),
            len(getattr(thing, "_rows", ())),
            getattr(thing, "_asked", 0),
            tuple((one.state, type(one.error), one.arrived, one.peer.up, one.peer.lost,
                   _stream_state(getattr(one, "stream", None) or getattr(one.data, "stream", None)
                                 if hasattr(one, "data") else getattr(one, "stream", None)))
                  for one in parts.values()))


def _stream_state(one):
    return one and (type(one.error), one.ended, len(one._left), len(one._open), len(one._running),
                    len(one._waiting))


WRITE = {"P": ["source", "add 0", "add 1", "seal"], "D": ["sink"]}
READ = {"P": ["source"], "D": ["sink"]}


def play(mode, faults, choose, most=400):
    """One order of events, as ``choose(number of choices, state)`` says; None: no further. Gives
    what happened; raises Broken."""
    world = World(mode)
    calls = {name: list(words) for name, words in (WRITE if mode == "write" else READ).items()}
    left, story = list(faults), []
    try:
        for _ in range(most):
            steps = world.steps(calls, left)
            only_faults = steps and all(name[0] == "FAULT" for name, _ in steps)
            if only_faults and not world.open():
                break
            if not steps:
                if not world.open() or not world.advance():
                    break
                story.append(("time", world.time))
                continue
            chosen = 0
            if len(steps) > 1:
                chosen = choose(len(steps), lambda: world.state(calls, left))
            if chosen is None:
                return story
            name, call = steps[chosen]
            story.append(name)
            with world.P.hub.lock, world.D.hub.lock:
                call()
            world.check()
        if world.open():
            raise Broken(f"{world.open()} never ended")
        judge(world, faults)
    except Exception as error:
        lines = (" ".join(str(word) for word in words) for words in story)
        raise Broken("\n".join([f"{type(error).__name__}: {error}", *lines])) from error
    return story


def judge(world, faults):
    """What both sides were told, all being over."""
    for name, side in world.sides.items():
        if name in world.things and not side.dead and len(side.outcomes) != 1:
            raise Broken(f"{name} was told {side.outcomes}")
    told = {name: side.outcomes[0].ok for name, side in world.sides.items() if side.outcomes}
    if not faults and told != {"P": True, "D": True}:
        raise Broken(f"without a fault: {told}")
    if world.mode == "write" and told.get("D") and not world.complete:
        raise Broken("D was told success, but not everything was added")
    moved = [t for side in world.sides.values() for t in side.transfers]
    if told.get("D") and not any(t.over for t in moved):
        raise Broken("D was told success, but nothing was moved")
    if any(side.hub._listeners or side.hub._streams for side in world.sides.values()
           if not side.dead):
        raise Broken("something is left in the tables")
