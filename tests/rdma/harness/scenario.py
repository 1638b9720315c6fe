"""How a scenario is declared: see ../README.md."""
from harness.machine import Failed

SCENARIOS = []


class Skipped(Exception):
    """Not possible here; the text says why."""


def scenario(sets="short long", guests=2, limit_s=60):
    def register(function):
        function.sets, function.guests, function.limit_s = sets.split(), guests, limit_s
        SCENARIOS[:] = [known for known in SCENARIOS if known.__name__ != function.__name__]  # a file that another one imports
        SCENARIOS.append(function)
        return function
    return register


def check(promise, text):
    if not promise:
        raise Failed(text)


__all__ = ["Failed", "SCENARIOS", "Skipped", "check", "scenario"]
