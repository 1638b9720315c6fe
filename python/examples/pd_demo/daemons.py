"""Daemons of the demo's own: two of them are two nodes."""

import os
import pathlib
import shutil
import subprocess
import sys
import time


def find_daemon(given):
    """Path of kvxferd; ends the program where there is none."""
    root = pathlib.Path(__file__).resolve().parents[3]
    built = sorted(str(path) for path in root.glob("build*/daemon/kvxferd"))
    for path in (given, os.environ.get("KVXFERD"), *built, shutil.which("kvxferd")):
        if path and os.access(path, os.X_OK):
            return path
    sys.exit("no kvxferd: build it (tools/quickstart.sh does), or name it with --kvxferd")


class Daemon:
    """A kvxferd with a socket of its own. Other nodes reach it on a free port of 127.0.0.1."""

    def __init__(self, path, folder):
        os.mkdir(folder)
        self.socket = f"{folder}/kvxferd.sock"
        self.log = f"{folder}/log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [path, "--socket", self.socket, "--listen", "127.0.0.1:0",
                 "--set", f"daemon.node_id_file={folder}/node-id"], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{path} does not start: {pathlib.Path(self.log).read_text()}")
            time.sleep(0.01)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
