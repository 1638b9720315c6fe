"""Fixtures. Needs the packages of install.sh, KVXFERD and KVXFERCTL (or a build folder), and 4 GiB
of memory.

What one engine alone answers is the truth that deployments are compared with; it is asked once for
each model and set of prompts and kept in memory.
"""

import pathlib
import sys
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import traffic  # noqa: E402
from deployment import Deployment, model_directory  # noqa: E402
from engine import Engine  # noqa: E402

Tokens = Tuple[int, ...]


class Truth:
    """Answers of one engine without a connector."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.dir = directory
        self.answers: Dict[Tuple[str, int, Tuple[str, ...]], Dict[traffic.Prompt, Tokens]] = {}

    def of(self, model: str, prompts: Sequence[traffic.Prompt], tokens: int, at_once: int = 8,
           more: Sequence[str] = ()) -> List[Tokens]:
        """The greedy tokens for each prompt. Blocks; an engine is started for what is not known."""
        known = self.answers.setdefault((model, tokens, tuple(more)), {})
        missing = [p for p in dict.fromkeys(prompts) if p not in known]
        if missing:
            engine = Engine("alone", model_directory(model), self.dir / f"{model}.log", more=more)
            try:
                engine.wait_ready()
                answers = traffic.run(engine.url, missing, tokens, at_once)
            finally:
                engine.stop()  # memory and cores are for the deployment
            for prompt, answer in zip(missing, answers):
                assert len(answer.tokens) == tokens, answer
                known[prompt] = answer.tokens
        return [known[p] for p in prompts]


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(tmp_path_factory.mktemp("truth"))


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A running 1P1D; its parameters are those of Deployment, by indirect parametrization."""
    options: Dict[str, Any] = dict(getattr(request, "param", {}))
    running = Deployment(**options)
    yield running
    running.close()
