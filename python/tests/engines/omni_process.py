"""Stage processes for the tests of kvxfer.vllm_omni: real processes with a real connector each,
driven through a pipe. They are forked from a server that has imported vLLM-Omni once."""

import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import traceback

# The fork server and its children look for modules here.
_here = pathlib.Path(__file__).resolve().parent
for _folder in (str(_here.parent), str(_here)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [_folder, *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["OMP_NUM_THREADS"] = "1"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["omni_preload"])


def make(socket, **extra):
    """A connector by vLLM-Omni's own factory."""
    import kvxfer.vllm_omni
    from vllm_omni.distributed.omni_connectors import ConnectorSpec, OmniConnectorFactory

    kvxfer.vllm_omni.register()
    extra = {"kvxfer_socket": socket, "memory_pool_size": 16 << 20, **extra}
    return OmniConnectorFactory.create_connector(ConnectorSpec(kvxfer.vllm_omni.NAME, extra))


def plain(got):
    """What a get gave, as something that can be sent through a pipe; buffers are released."""
    if got is None:
        return None
    what, size = got
    if hasattr(what, "release"):
        data = what.to_bytes()
        what.release()
        return data, size
    return what, size


class _Calls:
    """What a stage process can be told to do, beside the connector's own methods."""

    def __init__(self, socket, extra):
        os.environ.update(extra.pop("env", {}))
        self.connector = make(socket, **extra) if socket else None
        self.threads = []
        self.results = []

    def pid(self):
        return os.getpid()

    def get(self, *args, **options):
        return plain(self.connector.get(*args, **options))

    def get_within(self, seconds, *args):
        return plain(self.connector.get_with_deadline(
            *args, deadline=time.monotonic() + seconds))

    def poll(self, seconds, *args):
        """As vLLM-Omni's receive loops do: get, sleep 1 ms, again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            got = self.connector.get(*args)
            if got is not None:
                return plain(got)
            time.sleep(0.001)
        return None

    def put_bytes(self, key, nbytes, seed=0, stages=("0", "1")):
        return self.connector.put(*stages, key, pattern(nbytes, seed))

    def puts(self, prefix, n, nbytes, stages=("0", "1")):
        return [self.connector.put(*stages, f"{prefix}{i}", pattern(nbytes, i))
                for i in range(n)]

    def gets(self, prefix, n, nbytes, seconds, stages=("0", "1")):
        """Gets and checks n objects; returns how many were right."""
        right = 0
        for i in range(n):
            got = self.get_within(seconds, *stages, f"{prefix}{i}")
            right += got is not None and got[0] == pattern(nbytes, i)
        return right

    def start(self, name, *args):
        """Runs one of these in a thread of its own; ``join`` gives all results."""
        def run():
            try:
                self.results.append(getattr(self, name)(*args))
            except Exception as err:
                self.results.append(err)
        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def join(self, seconds=30):
        for thread in self.threads:
            thread.join(seconds)
        alive = sum(thread.is_alive() for thread in self.threads)
        self.threads = []
        results, self.results = self.results, []
        return results + [TimeoutError("a thread is still running")] * alive

    def usage(self):
        """(resident bytes, open fds, threads) of this process."""
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resident, len(os.listdir("/proc/self/fd")), threading.active_count()

    def run(self, function, *args):
        """A module-level function of a test, called with the connector (None: there is none)."""
        return function(self.connector, *args)


def pattern(nbytes, seed=0):
    """Bytes that differ between seeds and positions."""
    return (bytes((i * 7 + seed * 13 + 1) & 255 for i in range(251)) * (nbytes // 251 + 1))[:nbytes]


def _serve(pipe, socket, extra):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        calls = _Calls(socket, extra)
        pipe.send((None, os.getpid()))
    except BaseException as err:
        pipe.send((err, None))
        return
    while True:
        try:
            name, args, options = pipe.recv()
        except EOFError:
            break
        try:
            call = getattr(calls, name, None) or getattr(calls.connector, name)
            pipe.send((None, call(*args, **options)))
        except BaseException as err:
            err.add_note(traceback.format_exc())
            pipe.send((err, None))
    if calls.connector is not None:
        calls.connector.close()


class StageProcess:
    """``socket`` None: no connector is made; ``env``: environment variables, before it is.

    ``stage.put(...)`` calls the connector's method in the process and gives its result, or raises
    what it raised; ``stage.send(name, ...)`` does not wait for it, ``stage.result()`` does."""

    def __init__(self, socket, **extra):
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, socket, extra), daemon=True)
        self.process.start()
        theirs.close()
        self.result()

    def send(self, name, *args, **options):
        self._pipe.send((name, args, options))

    def result(self, seconds=60):
        if not self._pipe.poll(seconds):
            raise TimeoutError("no answer of the stage process")
        error, value = self._pipe.recv()
        if error is not None:
            raise error
        return value

    def __getattr__(self, name):
        def call(*args, **options):
            self.send(name, *args, **options)
            return self.result()
        return call

    def kill(self, signal_=signal.SIGKILL):
        os.kill(self.process.pid, signal_)
        if signal_ == signal.SIGKILL:
            self.process.join()

    def end(self):
        """Kills it if it still runs: after a test that failed."""
        if self.process.is_alive():
            self.kill()

    def stop(self):
        """Ends it in good order; fails when it does not end."""
        self._pipe.close()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError("the stage process did not end")
