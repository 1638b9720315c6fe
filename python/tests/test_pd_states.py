"""The two sides of kvxfer.pd in every order of events, with every failure at every moment
(pd_model.py)."""

import random

import pytest
from pd_model import Broken, play

FAULTS = ["cancel P", "cancel D", "deadline P", "deadline D", "fails", "kill P", "kill D",
          "daemon P", "daemon D", "unsure P", "unsure D"]


class Tree:
    """All paths of choices, depth first: each ``play`` follows one, ``next`` moves to the next. A
    state that was reached before on another path is not gone on from."""

    def __init__(self):
        self.path = []  # [choice, number of choices]
        self.at = 0
        self.seen = set()

    def choose(self, n, state):
        if self.at == len(self.path):
            here = state()
            if here in self.seen:
                return None
            self.seen.add(here)
            self.path.append([0, n])
        choice, known = self.path[self.at]
        assert known == n, "the same choices give the same events"
        self.at += 1
        return choice

    def next(self):
        self.at = 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if not self.path:
            return False
        self.path[-1][0] += 1
        return True


def explore(mode, faults):
    """Number of orders that were played: all."""
    tree, n = Tree(), 1
    play(mode, faults, tree.choose)
    while tree.next():
        play(mode, faults, tree.choose)
        n += 1
    return n


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_every_order_with_a_failure_at_every_moment(mode, fault):
    assert explore(mode, [] if fault == "none" else [fault]) > 10


@pytest.mark.parametrize("mode", ["write", "read"])
def test_two_failures_in_random_orders(mode):
    rnd = random.Random(mode)
    for _ in range(600):
        faults = rnd.sample(FAULTS, 2)
        play(mode, faults, lambda n, state: rnd.randrange(n))


def test_the_model_notices_an_outcome_that_comes_too_early(monkeypatch):
    """An expect that does not wait for the other side when it is cancelled."""
    from kvxfer.pd.expect import Expect

    monkeypatch.setattr(Expect, "_src_stop", lambda self, src, error: self._src_end(src, error))
    with pytest.raises(Broken, match="something moves"):
        explore("write", ["cancel D"])


def test_the_model_notices_what_never_ends(monkeypatch):
    """A source that never says that it has failed."""
    from kvxfer.pd import messages
    from kvxfer.pd.peers import Peer

    send = Peer.send
    monkeypatch.setattr(Peer, "send", lambda self, kind, *words: (
        None if kind == messages.FAILED else send(self, kind, *words)))
    with pytest.raises(Broken, match="never ended"):
        explore("write", ["cancel P"])
