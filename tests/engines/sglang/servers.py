"""Real SGLang servers on the CPU, real daemons under them, a tiny model with random weights."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
START_S = float(os.environ.get("KVX_SGLANG_START_S", "400"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def make_model(directory, *, layers=3, seed=0):
    """A Llama of a few kilobytes, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).float().save_pretrained(directory)
    return str(directory)


class Daemon:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(exist_ok=True)
        self.socket = str(self.dir / "kvxferd.sock")
        self.address = f"127.0.0.1:{free_port()}"
        self.start()

    def start(self):
        program = os.environ.get("KVXFERD") or str(next(ROOT.glob("build*/daemon/kvxferd")))
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    "--socket",
                    self.socket,
                    "--listen",
                    self.address,
                    "--set",
                    f"daemon.node_id_file={self.dir}/node-id",
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 30
        while not os.path.exists(self.socket):
            assert time.monotonic() < end, (self.dir / "log").read_text()
            time.sleep(0.02)

    def transfers(self):
        import kvxfer

        with kvxfer.Client(self.socket, name="look", timeout=30) as client:
            return client.query("transfers")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


class Server:
    """``python -m sglang.launch_server``; or kvxfer's launcher, which is the same where SGLang does
    not find kvxfer's entry point."""

    def __init__(
        self,
        mode,
        model,
        directory,
        *,
        daemon=None,
        bootstrap=None,
        options=(),
        launcher="kvxfer.sglang.launch_server",
    ):
        self.mode, self.port = mode, free_port()
        self.log_path = pathlib.Path(directory) / f"{mode}-{self.port}.log"
        env = dict(
            os.environ,
            SGLANG_USE_CPU_ENGINE="1",
            OMP_NUM_THREADS="1",
            MKL_NUM_THREADS="1",
            PYTHONPATH=os.pathsep.join(
                [os.environ.get("PYTHONPATH", ""), str(HERE / "standin")]
            ).strip(os.pathsep),
        )
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            launcher,
            "--model-path",
            model,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--skip-tokenizer-init",
            "--attention-backend",
            "torch_native",
            "--sampling-backend",
            "pytorch",
            "--disable-overlap-schedule",
            "--max-total-tokens",
            "2048",
            "--max-running-requests",
            "16",
            "--mem-fraction-static",
            "0.3",
            "--port",
            str(self.port),
            "--skip-server-warmup",
            "--random-seed",
            "1",
            "--cuda-graph-backend-decode",
            "disabled",
            "--cuda-graph-backend-prefill",
            "disabled",
        ]
        tp = int(options[options.index("--tp-size") + 1]) if "--tp-size" in options else 1
        if tp > 1:  # SGLang wants a NUMA node per rank, or to be told the CPUs of each
            env["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * tp)
        if mode != "null":
            env["KVXFER_SOCKET"] = daemon.socket
            command += [
                "--disaggregation-mode",
                mode,
                "--disaggregation-transfer-backend",
                "kvxfer",
                "--disaggregation-bootstrap-port",
                str(bootstrap),
            ]
        if mode == "decode":
            command += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command + list(options), env=env, stdout=log, stderr=log, start_new_session=True
            )

    def log(self):
        return self.log_path.read_text(errors="replace")

    def ready(self):
        end = time.monotonic() + START_S
        while "ready to roll" not in self.log():
            assert self.process.poll() is None and time.monotonic() < end, self.log()[-4000:]
            time.sleep(0.3)

    def post(self, path, body, timeout=120):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as err:
            return {"status": err.code, "error": err.read().decode(errors="replace")}
        return json.loads(text) if text.startswith((b"{", b"[")) else {}

    def generate(self, ids, n=12, **more):
        return self.post(
            "generate",
            {
                "input_ids": ids,
                "sampling_params": {"temperature": 0, "max_new_tokens": n, "ignore_eos": True},
                **more,
            },
        )

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self):
        if self.process.poll() is None:
            self.kill()


class Deployment:
    """One prefill and one decode server, each with a daemon of its own, and what a router does."""

    def __init__(self, directory, model, *, prefill=(), decode=()):
        self.dir = pathlib.Path(directory)
        self.bootstrap = free_port()
        self.daemons = [Daemon(self.dir / "node-p"), Daemon(self.dir / "node-d")]
        self.prefill = Server(
            "prefill",
            model,
            directory,
            daemon=self.daemons[0],
            bootstrap=self.bootstrap,
            options=prefill,
        )
        self.decode = Server(
            "decode",
            model,
            directory,
            daemon=self.daemons[1],
            bootstrap=self.bootstrap,
            options=decode,
        )
        try:
            self.prefill.ready()
            self.decode.ready()
        except BaseException:
            self.stop()
            raise

    def generate(self, ids, room, n=12, **more):
        """As SGLang's router: the same request to both. (prefill's answer, decode's answer)."""
        where = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.bootstrap,
            "bootstrap_room": room,
            **more,
        }
        answers = {}

        def ask(server):
            answers[server.mode] = server.generate(ids, n, **where)

        threads = [
            threading.Thread(target=ask, args=(server,)) for server in (self.prefill, self.decode)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers["prefill"], answers["decode"]

    def stop(self):
        for one in (self.prefill, self.decode):
            one.stop()
        for daemon in self.daemons:
            daemon.stop()
