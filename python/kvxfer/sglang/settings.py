"""What an operator can set: environment variables, read once per process."""

import os
from typing import NamedTuple, Optional

from .. import errors

__all__ = ["Settings", "settings"]


class Settings(NamedTuple):
    """All optional."""

    #: KVXFER_SOCKET: socket of the node's daemon. None: as kvxfer.Client.
    socket: Optional[str]
    #: KVXFER_SGLANG_ENGINE: name of this engine instance. None: "ip:port" of its HTTP server.
    engine: Optional[str]
    #: KVXFER_SGLANG_PATIENCE: seconds for which a prefill rank that is not there is looked for.
    patience: float
    #: KVXFER_SGLANG_ABORT_WAIT: seconds for which an abort on the prefill side waits for the end of
    #: what is being read, where SGLang gives the pages back at once.
    abort_wait: float


def settings() -> Settings:
    """Raises Invalid for what cannot be read."""
    return Settings(os.environ.get("KVXFER_SOCKET") or None,
                    os.environ.get("KVXFER_SGLANG_ENGINE") or None,
                    _seconds("KVXFER_SGLANG_PATIENCE", 5.0),
                    _seconds("KVXFER_SGLANG_ABORT_WAIT", 0.1))


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise errors.Invalid(f"{name}={text!r}: must be seconds, 0..3600")
    return value
