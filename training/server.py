"""Sampling from an OpenAI-compatible server (vLLM) by URL, instead of from a model in this process.

Prompts travel as token ids, and vLLM (0.10.2 and later) sends back the very ids that it sampled: nothing is tokenised
twice. A policy in training is shown to the server as a LoRA adapter in a folder that both can read. Every sample has a
seed of its own; but vLLM's arithmetic follows what else is in its batch, so a run does not repeat token by token.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch

from data.records import InputError
from training.base import Base
from training.config import server_address
from training.log_probs import TokenLogProbs
from training.processes import is_main, wait
from training.rollout import Sample

API_KEY = "SERVER_API_KEY"
"""The environment variable that holds the server's key, where it wants one."""
TRIES = 5
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long."""
CONNECTIONS = 64
"""Requests under way at once; the server batches what is there."""
TIMEOUT = httpx.Timeout(600, connect=10)
OTHER_MODEL = 0.5
"""Nats a token. vLLM in bf16 and the policy in fp32 were 0.03 to 0.06 apart; policy and base, once trained apart, 1.2
to 2.7 (vLLM 0.32, SmolLM2-135M)."""


class Completion(NamedTuple):
    """One answer of the server. `ids` (end token included) and `log_probs` are None where it does not tell them."""

    text: str
    ids: list[int] | None
    num_tokens: int | None
    finish_reason: str  # "stop" or "length"
    log_probs: list[float] | None


class Server:
    """An OpenAI-compatible server. Use as a context manager. Raises InputError for whatever goes wrong with it."""

    def __init__(self, url: str) -> None:
        self.url = server_address(url)
        key = os.environ.get(API_KEY)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """The names of what it serves."""
        answer = self._call("GET", "/v1/models")
        try:
            return [str(card["id"]) for card in answer.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.url}: does not answer as an OpenAI-compatible server; check the URL") from None

    def complete(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: Sequence[float],
        top_p: float,
        stop_ids: set[int],
        on_answer: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """K completions of each of P prompts: one for each of the K `temperature`s.

        `keys[p]` is (seed, update, prompt): with the number of a sample it seeds that sample's stream on the server.
        What a server may have defaults of its own for (vLLM: the model's generation config) is set here.
        """
        shared = {
            "model": model, "max_tokens": max_new_tokens, "n": 1, "top_p": top_p, "top_k": -1, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop_token_ids": sorted(stop_ids), "return_token_ids": True, "logprobs": 0,
        }  # fmt: skip
        results: list[list[Any]] = [[None] * len(temperature) for _ in prompts]
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            waiting = {
                pool.submit(
                    self._complete,
                    shared | {"prompt": list(ids), "temperature": heat, "seed": request_seed(*key, k)},
                ): (p, k)
                for p, (ids, key) in enumerate(zip(prompts, keys, strict=True))
                for k, heat in enumerate(temperature)
            }
            for done, future in enumerate(as_completed(waiting), 1):
                p, k = waiting[future]
                results[p][k] = future.result()
                if on_answer:
                    on_answer(done, len(waiting))
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def only_model(self) -> str:
        """The name of what it serves, where that is one thing."""
        names = self.models()
        if len(names) != 1:
            raise InputError(f"{self.url}: serves {', '.join(names) or 'nothing'}; name one with --server-model")
        return names[0]

    @contextmanager
    def adapter(self, folder: Path | str) -> Iterator[str]:
        """Let the server apply a PEFT folder inside the block; gives the model name to ask for."""
        folder = Path(folder).resolve()
        name = adapter_name(folder)
        self._unload(name)  # a run that was killed may have left it, and with it another path
        answer = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status_code != 200:
            self._refuse_key(answer)
            raise InputError(
                f"{self.url}: did not load the adapter {folder} ({_reason(answer)}); start vLLM with --enable-lora, "
                "--max-lora-rank at least the adapter's, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it can read "
                "that folder"
            )
        try:
            yield name
        finally:
            self._unload(name)

    def _unload(self, name: str) -> None:
        """Let the server forget an adapter, where it has it and is there at all."""
        with suppress(httpx.TransportError):
            self._http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def _complete(self, body: dict[str, Any]) -> Completion:
        answer = self._call("POST", "/v1/completions", body)
        try:
            document = answer.json()
            choice = document["choices"][0]
            ids = choice.get("token_ids")
            count = len(ids) if ids is not None else (document.get("usage") or {}).get("completion_tokens")
            log_probs = (choice.get("logprobs") or {}).get("token_logprobs")
            found = Completion(str(choice["text"]), ids, count, str(choice["finish_reason"]), log_probs)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise InputError(
                f"{self.url}: answered with something that is no completion ({answer.text[:100]!r})"
            ) from None
        if found.finish_reason not in ("stop", "length"):
            raise InputError(f"{self.url}: broke off a completion ({found.finish_reason}); look into the server's log")
        return found

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to a request that must succeed."""
        answer = self._send(method, path, body)
        if answer.status_code == 200:
            return answer
        self._refuse_key(answer)
        if answer.status_code == 404 and body and "model" in body:
            raise InputError(
                f"{self.url}: serves no model {body['model']!r} ({_reason(answer)}); it serves "
                f"{', '.join(self.models())}"
            )
        raise InputError(f"{self.url}{path}: status {answer.status_code}: {_reason(answer)}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The last answer of several tries: what is down or busy may be up in a moment."""
        for number in range(TRIES):
            last = number == TRIES - 1
            pause = FIRST_PAUSE * 2**number
            try:
                answer = self._http.request(method, path, json=body)
                if last or (answer.status_code != 429 and answer.status_code < 500):
                    return answer
                pause = max(pause, _retry_after(answer))
            except httpx.TransportError as error:
                if last or isinstance(error, httpx.ReadTimeout | httpx.UnsupportedProtocol):
                    raise InputError(
                        f"{self.url}: cannot be reached ({str(error) or type(error).__name__}); start the server or "
                        "correct the URL"
                    ) from None
            time.sleep(pause)
        raise AssertionError

    def _refuse_key(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):
            raise InputError(
                f"{self.url}: refuses us ({_reason(answer)}); put its key into the environment variable {API_KEY}"
            )


def request_seed(*key: int) -> int:
    """The seed of the random stream with this key, small enough for every server (31 bits)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1


def adapter_name(folder: Path) -> str:
    """What the server knows an adapter by. It follows from the weights: vLLM caches what it has read of a prompt by
    adapter name, and would go on from an old policy's reading under a name used again (its issue 42125).
    """
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise InputError(f"{folder}: is no adapter (it holds no {file.name})")
    return f"{folder.name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


@contextmanager
def served(server: Server, base: Base, adapter: str, folder: Path) -> Iterator[str]:
    """Show an adapter of `base` to the server inside the block, through `folder`; gives the model name to ask for."""
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        base.save_adapter(adapter, folder)
    try:
        with server.adapter(folder) if is_main() else nullcontext():
            wait()
            yield adapter_name(folder.resolve())
            wait()
    finally:
        if is_main():
            shutil.rmtree(folder, ignore_errors=True)


def sample_policy(
    server: Server,
    base: Base,
    adapter: str,
    folder: Path,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
) -> list[list[Sample]]:
    """Samples of an adapter of `base` as the server gives them, checked to be that adapter's."""
    with served(server, base, adapter, folder) as name:
        found = server.complete(
            name, prompts, keys, max_new_tokens=max_new_tokens, temperature=[temperature] * samples_per_prompt,
            top_p=1.0, stop_ids=base.stop_ids,
        )  # fmt: skip
    flat = [(ids, completion) for ids, row in zip(prompts, found, strict=True) for completion in row]
    for _, completion in flat:
        ends = completion.ids and completion.ids[-1] in base.stop_ids
        if not completion.ids or (completion.finish_reason == "stop" and not ends):
            raise InputError(
                f"{server.url}: does not send the sampled token ids with their end token, which PPO needs; vLLM 0.10.2 "
                "and later does (return_token_ids)"
            )
    if flat:
        _check_same_model(server, base, adapter, *max(flat, key=lambda pair: len(pair[1].ids or [])))
    return [[Sample(c.ids or [], c.finish_reason) for c in row] for row in found]


@torch.no_grad()
def _check_same_model(server: Server, base: Base, adapter: str, prompt: Sequence[int], completion: Completion) -> None:
    """A server of some other model would answer as well, and PPO would learn from what its policy never said."""
    if not completion.ids or len(completion.log_probs or []) != len(completion.ids):
        return  # not every server tells them
    ids = torch.tensor([[*prompt, *completion.ids]], device=base.device)
    head = base.model.get_output_embeddings()
    with base.using(adapter):
        hidden = base.hidden(input_ids=ids)[0, len(prompt) - 1 : -1]
        ours, _ = TokenLogProbs.apply(hidden, head.weight, head.bias, ids[0, len(prompt) :], 1.0, False, 256)
    gap = float((ours.cpu() - torch.tensor(completion.log_probs)).abs().mean())
    if gap > OTHER_MODEL:
        raise InputError(
            f"{server.url}: its log-probabilities differ from the policy's by {gap:.2f} nats a token: it serves "
            f"another model than {base.name}; start it with that one"
        )


def _reason(answer: httpx.Response) -> str:
    """The server's own words for an error, on one line."""
    try:
        document = answer.json()
        error = document.get("error") or document
        text = str((error.get("message") if isinstance(error, dict) else error) or document.get("detail") or document)
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:300] or answer.reason_phrase


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    try:
        return min(60.0, float(answer.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
