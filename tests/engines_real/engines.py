"""vLLM processes on this machine: started, asked, killed, and read by their own metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

READY_S: Final = 300.0
_CONNECTOR: Final = {"kv_role": "kv_both", "kv_buffer_device": "cpu"}
_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
}


@dataclass(frozen=True, slots=True)
class Side:
    """How an engine hands KV over."""

    connector: str
    port: int


class Engine:
    """One vLLM server and the processes it starts."""

    def __init__(self, python: str, model: Path, port: int, log: Path, side: Side | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        arguments = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        arguments += ["--served-model-name", "tiny", "--dtype", "bfloat16", "--max-model-len", "1024"]
        arguments += ["--enforce-eager", "--max-num-seqs", "32", "--no-enable-prefix-caching"]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
        environment = {**os.environ, **_QUIET}
        if side is not None:
            arguments += ["--kv-transfer-config", json.dumps({"kv_connector": side.connector, **_CONNECTOR})]
            environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(side.port)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                ["nice", "-n", "5", *arguments],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait(self) -> Engine:
        """Until it serves."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.url} ended with {self._process.returncode}; see its log")
            try:
                with _opened(self.url + "/health", 2.0):
                    return self
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(f"{self.url} did not begin to serve")

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Ask it directly."""
        request = urllib.request.Request(  # noqa: S310 - of this machine
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _opened(request, 60.0) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """Its greedy answer."""
        _, answer = self.post(
            "/v1/completions",
            {
                "model": "tiny",
                "prompt": list(prompt),
                "max_tokens": count,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with _opened(self.url + "/metrics", 10.0) as response:
            text = response.read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        return sum(map(float, found))

    def version(self) -> str:
        """As it says."""
        with _opened(self.url + "/version", 10.0) as response:
            return str(json.load(response)["version"])


def _opened(what: str | urllib.request.Request, timeout_s: float) -> Any:
    return urllib.request.urlopen(what, timeout=timeout_s)  # noqa: S310 - of this machine


@contextmanager
def killed(*engines: Engine) -> Iterator[None]:
    """Ends engines at the end, whatever happened."""
    try:
        yield
    finally:
        for engine in engines:
            engine.kill()
