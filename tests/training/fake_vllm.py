"""A real HTTP server that speaks the part of vLLM's protocol that we use, over a model of ours."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from training.base import Base
from training.chat_template import decode
from training.models import load_base
from training.rollout import sample, uniforms


class FakeVLLM:
    """Serves a model folder under the name "base", and the adapters that it is told to load.

    What is asked of it stands in `requests` as (path, body). Statuses in `failures` are answered before anything else.
    """

    def __init__(self, folder: Path, *, token_ids: bool = True, lora: bool = True, key: str = "") -> None:
        self.base: Base = load_base(str(folder), "fp32", "cpu")
        self.token_ids, self.lora, self.key = token_ids, lora, key
        self.adapters: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.failures: deque[int] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> FakeVLLM:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(*fake.answer(self.path, {}, self.headers.get("Authorization")))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._reply(*fake.answer(self.path, body, self.headers.get("Authorization")))

            def _reply(self, status: int, document: Any) -> None:
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if status == 429:
                    self.send_header("Retry-After", "3")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any], authorization: str | None) -> tuple[int, Any]:
        """(status, document) for a request."""
        with self._lock:
            self.requests.append((path, body))
            if self.failures:
                return self.failures.popleft(), _error("try again later")
            if self.key and authorization != f"Bearer {self.key}":
                return 401, {"error": "Unauthorized"}
            if path == "/v1/models":
                return 200, {"object": "list", "data": [{"id": name} for name in ["base", *self.adapters]]}
            if path == "/v1/completions":
                return self._complete(body)
            if self.lora and path == "/v1/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            if self.lora and path == "/v1/unload_lora_adapter":
                gone = self.adapters.pop(body["lora_name"], None)
                return (200, "Success") if gone else (404, _error("The lora adapter cannot be found."))
            return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").exists():
            return 404, _error(f"No adapter found for {path}")
        self.adapters[name] = self.base.attach(path)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        model, prompt, length = body["model"], body["prompt"], body["max_tokens"]
        if model != "base" and model not in self.adapters:
            return 404, _error(f"The model `{model}` does not exist.")
        if len(prompt) + length > self.base.context_length:
            return 400, _error(f"This model's maximum context length is {self.base.context_length} tokens.")
        assert body["stop_token_ids"] == sorted(self.base.stop_ids)
        assert (body["top_k"], body["repetition_penalty"], body["n"]) == (-1, 1.0, 1)
        adapter = self.adapters.get(model)
        random = uniforms(body["seed"], 0, 0, 0, length)[None, None]
        ((found,),) = sample(
            self.base, [prompt], random, adapter=adapter, temperature=body["temperature"], top_p=body["top_p"]
        )
        choice = {"index": 0, "text": decode(self.base, found.ids), "finish_reason": found.finish_reason}
        if self.token_ids:
            logits = self.logits([*prompt, *found.ids], adapter)[len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits, -1).gather(1, torch.tensor(found.ids)[:, None])[:, 0]
            choice |= {"token_ids": found.ids, "logprobs": {"token_logprobs": log_probs.tolist()}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(found.ids)}
        return 200, {"object": "text_completion", "model": model, "choices": [choice], "usage": usage}

    @torch.no_grad()
    def logits(self, ids: list[int], adapter: str | None) -> torch.Tensor:
        """(length, V)"""
        with self.base.using(adapter):
            return self.base.logits(self.base.hidden(torch.tensor([ids])))[0]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError"}}
