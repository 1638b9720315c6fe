"""``python -m kvxfer.sglang.launch_server ...``: SGLang's launch_server with kvxfer's backend.

Only needed where SGLang does not find the entry point of an installed kvxfer, e.g. when kvxfer is
used from a source tree. Same arguments. SGLang's child processes import this module again
(multiprocessing's "spawn"), and so know the backend, too.
"""

import os
import sys


def _register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    from kvxfer.sglang.plugin import register

    register()
    HookRegistry.apply_hooks()


def main() -> None:
    """As ``python -m sglang.launch_server``."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    try:
        run_server(prepare_server_args(sys.argv[1:]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__mp_main__":
    # A child. The scheduler's module is imported first: it decides which hooks are wanted.
    import sglang.srt.managers.scheduler  # noqa: F401

    _register()
elif __name__ == "__main__":
    _register()
    main()
