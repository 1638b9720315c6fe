"""vLLM-Omni connector: stages hand objects to each other through the node's kvxferd.

``register()`` makes the name "KvxferConnector" known to vLLM-Omni in this process. With the
package installed nothing has to be called: ``plugin`` is an entry point of the groups
``vllm.general_plugins`` and ``vllm_omni.general_plugins``, which are loaded in each process of a
pipeline. A deploy YAML then names it:

    connectors:
      kvxfer:
        name: KvxferConnector
        extra: {memory_pool_size: 536870912}

docs/engines/vllm-omni.md has every key. Importing this package imports neither torch nor vLLM.
"""

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import KvxferConnector
    from .fetch import FetchError, SizeMismatch

__all__ = ["NAME", "FetchError", "KvxferConnector", "SizeMismatch", "plugin", "register"]

#: The connector's name in a deploy YAML.
NAME = "KvxferConnector"
_SET = "TRANSFER_ENGINE_CONNECTOR_NAMES"


def plugin() -> None:
    """The entry point: ``register()`` where vLLM-Omni is installed, else nothing. The environment
    variable KVXFER_OMNI_REPLACE is its argument."""
    if importlib.util.find_spec("vllm_omni") is not None:
        register(os.environ.get("KVXFER_OMNI_REPLACE", ""))


def register(replace: str = "") -> None:
    """Makes the connector known to vLLM-Omni in this process; may be called again.

    Beside the factory's entry the name joins vLLM-Omni's list of transfer-engine connectors, so
    that it is given what the others are given: its role, its stages, and an endpoint number for
    each purpose, replica and rank.

    Args:
        replace: also answer for this connector's name ("MoriTransferEngineConnector"), so that
            deploy YAMLs that name it need no change.

    Raises ImportError without vLLM-Omni; RuntimeError when this version of it has no such list.
    """
    from vllm_omni.distributed.omni_connectors.factory import OmniConnectorFactory

    if NAME not in OmniConnectorFactory.list_registered_connectors():
        OmniConnectorFactory.register_connector(NAME, _create)
    _join_transfer_engines()
    if replace:
        if replace not in OmniConnectorFactory.list_registered_connectors():
            raise RuntimeError(f"vLLM-Omni has no connector {replace!r} to replace")
        OmniConnectorFactory._registry[replace] = _create


def _create(config: "dict[str, Any]") -> "KvxferConnector":
    from .connector import KvxferConnector

    return KvxferConnector(config)


def _join_transfer_engines() -> None:
    """The list is a constant that other modules have imported by name: each gets the longer one,
    those imported later get it from its home."""
    from vllm_omni.distributed.omni_connectors.utils import config

    known = getattr(config, _SET, None)
    if not isinstance(known, frozenset):
        raise RuntimeError(f"this vLLM-Omni has no {_SET}: kvxfer is made for vllm-omni 0.30")
    if NAME in known:
        return
    longer = known | {NAME}
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm_omni") and getattr(module, _SET, None) is known:
            setattr(module, _SET, longer)


def __getattr__(name: str) -> Any:
    if name == "KvxferConnector":
        from . import connector

        return connector.KvxferConnector
    if name in ("FetchError", "SizeMismatch"):
        from . import fetch

        return getattr(fetch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
