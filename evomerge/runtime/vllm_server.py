"""The vLLM process of a worker, run by the other environment's Python: ``python -m evomerge.runtime.vllm_server FD``.

It answers one request after the other and ends, with everything it started, as soon as the worker is gone. The only
module that imports vllm.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from evomerge.runtime.vllm_extension import EXTENSION, kind_of
from evomerge.runtime.vllm_wire import Closed, receive, send


class Refused(Exception):
    """A request that was answered with an error; ``kind`` tells the worker what follows from it."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Server:
    """One vLLM engine and what the worker may ask of it."""

    def __init__(self) -> None:
        self._llm: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What is sent back; an engine's error is sent, not raised."""
        work: dict[str, Callable[..., Any]] = {"open": self.open, "apply": self.apply, "generate": self.generate}
        try:
            return {"ok": work[request.pop("op")](**request)}
        except Refused as error:
            return {"error": error.kind, "message": str(error)}
        except Exception as error:  # of the engine
            return {"error": kind_of(error), "message": " ".join(f"{type(error).__name__}: {error}".split())}

    def open(self, engine: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
        """Load the model and open what will be merged."""
        import vllm

        self._llm = vllm.LLM(worker_extension_cls=EXTENSION, **engine)
        self._everywhere("evomerge_open", json.dumps(models))
        return {"version": vllm.__version__}

    def apply(self, recipe: str) -> dict[str, Any]:
        """Merge a recipe into the engine's weights; nothing computed from older ones is kept."""
        answers = self._everywhere("evomerge_apply", recipe)
        # Keys and values of earlier weights would be read again for prompts that begin alike.
        if self._llm.reset_prefix_cache() is not True:
            raise Refused("engine", "vLLM did not confirm that its prefix cache is empty after a change of weights")
        return {"seconds": max(answer["seconds"] for answer in answers), "state_bytes": answers[0]["state_bytes"]}

    def generate(
        self,
        prompts: list[list[int]],
        stops: list[str],
        ends: list[int],
        max_new_tokens: list[int],
        salt: str | None = None,
        logprobs: bool = False,
    ) -> dict[str, Any]:
        """Greedy answers as tokens, with the log-probability of each where asked for."""
        from vllm import SamplingParams

        salted = {} if salt is None else {"cache_salt": salt}
        asked = [{"prompt_token_ids": prompt, **salted} for prompt in prompts]
        parameters = [
            SamplingParams(
                temperature=0.0, max_tokens=count, stop=stops or None, stop_token_ids=ends or None,
                skip_special_tokens=True, spaces_between_special_tokens=False, logprobs=0 if logprobs else None,
            )
            for count in max_new_tokens
        ]  # fmt: skip
        outputs = self._llm.generate(asked, parameters, use_tqdm=False)
        answers = []
        for output in outputs:
            best = output.outputs[0]
            tokens = [int(token) for token in best.token_ids]
            answer: dict[str, Any] = {"tokens": tokens, "reason": best.finish_reason}
            if logprobs:
                answer["logprobs"] = [
                    float(found[token].logprob) for token, found in zip(tokens, best.logprobs, strict=True)
                ]
            answers.append(answer)
        return {"answers": answers}

    def _everywhere(self, method: str, argument: str) -> list[dict[str, Any]]:
        """Call a method of the extension in every worker process of the engine."""
        answers = [json.loads(answer) for answer in self._llm.collective_rpc(method, args=(argument,))]
        for answer in answers:
            if "error" in answer:
                raise Refused(answer["error"], answer["message"])
        return [answer["ok"] for answer in answers]


def serve(connection: socket.socket) -> None:
    """Answer requests until the worker is gone."""
    requests: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                requests.put(receive(connection))
        except Closed:
            end_family()

    threading.Thread(target=listen, daemon=True).start()
    server = Server()
    while True:
        request = requests.get()
        with contextlib.suppress(Closed):  # the listening thread ends the process
            send(connection, server.answer(request))


def end_family() -> None:
    """End this process and every one it started, at once: the worker that they worked for is gone."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Take over the socket, and send everything that is printed to the log."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    assert os.getpgrp() == os.getpid(), "started without a process group of its own"
    serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main()
