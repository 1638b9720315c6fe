"""A whole deployment on one machine: daemons, a prefill and a decode engine, a proxy."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import urllib.request
from typing import Any, Dict, List, Mapping, Optional, Sequence

import models
from engine import Engine
from nodes import Node
from processes import Process, free_port, http_ok, wait_until

CONNECTOR = {"kv_connector": "KvxferConnector", "kv_connector_module_path": "kvxfer.vllm"}
REGISTER_S = 30.0


def model_directory(name: str) -> pathlib.Path:
    """Makes the model where it is not there yet."""
    base = pathlib.Path(os.environ.get("KVX_MODELS", tempfile.gettempdir() + "/kvxfer-test-models"))
    path = base / name
    if not (path / "tokenizer_config.json").exists():
        models.make(name, path)
    return path


class Deployment:
    """1P1D. Everything is started in __init__ (blocks for a minute) and stopped by close()."""

    def __init__(self, model: str = "llama", mode: str = "WRITE", *, prefill_tp: int = 1,
                 decode_tp: int = 1, nodes: int = 1, more: Sequence[str] = (),
                 prefill_more: Sequence[str] = (), decode_more: Sequence[str] = (),
                 config: Optional[Mapping[str, Any]] = None, blocks: int = 1024,
                 settings: Sequence[str] = (), router: str = "proxy",
                 connector: Optional[Mapping[str, str]] = None,
                 env: Optional[Mapping[str, str]] = None):
        self.connector, self.env = connector or CONNECTOR, env
        self.model, self.mode, self.decode_tp = model, mode, decode_tp
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="kvxfer-vllm-"))
        self.nodes: List[Node] = []
        self.engines: List[Engine] = []
        self.router: Optional[Process] = None
        try:
            for i in range(nodes):
                self.nodes.append(Node(self.dir, i + 1, *settings))
            self.discovery_port, self.proxy_port = free_port(), free_port()
            self.url = f"http://127.0.0.1:{self.proxy_port}"
            self.start_router(router)
            path = model_directory(model)
            self.prefill = self.engine("prefill", path, self.nodes[0], "kv_producer", prefill_tp,
                                       config, blocks, [*more, *prefill_more])
            self.decode = self.engine("decode", path, self.nodes[-1], "kv_consumer", decode_tp,
                                      config, blocks, [*more, *decode_more])
            for one in self.engines:
                one.wait_ready()
            if router == "proxy":
                self.wait_registered()
        except BaseException:
            self.close()
            raise

    def start_router(self, router: str) -> None:
        if router == "proxy":
            command = [sys.executable, str(pathlib.Path(__file__).with_name("proxy.py")), "--port",
                       str(self.proxy_port), "--discovery-port", str(self.discovery_port)]
        else:
            command = [*router.split(), "--vllm-pd-disaggregation", "--kv-connector", "moriio",
                       "--vllm-discovery-address", f"127.0.0.1:{self.discovery_port}", "--host",
                       "127.0.0.1", "--port", str(self.proxy_port),
                       "--prometheus-port", str(free_port())]
        self.router = Process("proxy", command, self.dir / "proxy.log")

    def engine(self, name: str, path: pathlib.Path, node: Node, role: str, tp: int,
               config: Optional[Mapping[str, Any]], blocks: int, more: Sequence[str]) -> Engine:
        host = node.address.split(":")[0]
        port = free_port(host)
        extra: Dict[str, Any] = {"proxy_ip": "127.0.0.1",
                                 "proxy_ping_port": str(self.discovery_port),
                                 "http_port": str(port), "handshake_port": str(free_port(host)),
                                 "notify_port": str(free_port(host))}
        if self.mode == "READ":
            extra["read_mode"] = True
        extra.update(config or {})
        kv = dict(self.connector, kv_role=role, kv_connector_extra_config=extra)
        made = Engine(name, path, self.dir / f"{name}.log", host=host, port=port, tp=tp, kv=kv,
                      socket=node.socket, blocks=blocks, more=more, env=self.env)
        self.engines.append(made)
        return made

    def instances(self) -> Dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/instances", timeout=5) as answer:
            return dict(json.load(answer))

    def wait_registered(self) -> float:
        def both() -> bool:
            if not http_ok(f"{self.url}/instances"):
                return False
            known = self.instances()
            return bool(known["P"]) and bool(known["D"])
        return wait_until("both engines registered at the proxy", REGISTER_S, both, 0.2)

    def wait_idle(self, seconds: float = 30.0) -> None:
        """Both engines hold no block and the daemons move nothing."""
        for one in self.engines:
            one.wait_idle(seconds)
        for node in self.nodes:
            node.wait_idle(seconds)

    def logs(self) -> str:
        """The ends of all logs, for a failed assertion."""
        return "\n".join(f"---- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
                         for path in sorted(self.dir.rglob("*log")))

    def close(self) -> None:
        for one in self.engines:
            one.stop()
        if self.router:
            self.router.stop()
        problems = []
        for node in self.nodes:
            try:
                node.stop()
            except AssertionError as error:
                problems.append(str(error))
        keep = os.environ.get("KVX_KEEP_LOGS")
        if keep:
            shutil.copytree(self.dir, pathlib.Path(keep) / self.dir.name)
        shutil.rmtree(self.dir, ignore_errors=True)
        assert not problems, problems
