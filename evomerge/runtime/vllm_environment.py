"""Looks into another Python environment for vLLM and for what evomerge's merge code needs there; starts nothing big."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from evomerge.runtime.vllm_client import foreign_environment

# vLLM from the first version that was read with transformers 5; the rest as in this project's own requirements.
NEEDED: Mapping[str, tuple[int, ...]] = {
    "vllm": (0, 25),
    "torch": (2, 6),
    "transformers": (5, 0),
    "safetensors": (0, 5),
    "numpy": (2, 0),
    "huggingface_hub": (1, 0),
    "pyyaml": (6, 0),
    "psutil": (5, 9),
    "numba": (0, 61),
}
PYTHON = (3, 11)
LOOK_SECONDS = 60.0

_SCRIPT = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print("\\n" + json.dumps({"python": list(sys.version_info[:3]), "versions": found}))
"""


@dataclass(frozen=True)
class VllmEnvironment:
    """What was found.

    Attributes:
        versions: package -> version; what is not installed is left out.
        problems: why it cannot be used, each with its fix; empty when it can.
    """

    versions: Mapping[str, str]
    problems: tuple[str, ...] = ()

    @property
    def vllm(self) -> str:
        """VLLM's version, empty where there is none."""
        return self.versions.get("vllm", "")


@cache
def find_environment(python: str) -> VllmEnvironment:
    """Ask an interpreter what is installed beside it. vLLM is not imported, which would take many seconds."""
    try:
        done = subprocess.run(
            [python, "-c", _SCRIPT, *NEEDED], capture_output=True, text=True, timeout=LOOK_SECONDS, check=False,
            env=foreign_environment(), stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return VllmEnvironment({}, (f"{python} did not answer within {LOOK_SECONDS:.0f} s",))
    except OSError as error:
        hint = "give the interpreter of the environment that has vLLM, for example /opt/vllm/bin/python"
        return VllmEnvironment({}, (f"{python} cannot be started ({error.strerror}); {hint}",))
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        version, versions = tuple(found["python"]), dict(found["versions"])
    except (ValueError, LookupError, TypeError):
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return VllmEnvironment({}, (f"{python} is no Python interpreter that works: {said}",))
    return VllmEnvironment(versions, tuple(_problems(python, version, versions)))


def _problems(python: str, version: tuple[int, ...], versions: Mapping[str, str]) -> list[str]:
    problems = []
    if version < PYTHON:
        shown, wanted = ".".join(map(str, version)), ".".join(map(str, PYTHON))
        problems.append(f"{python} is Python {shown}; evomerge's merge code needs {wanted} or newer there")
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        if name not in versions:
            problems.append(f"{name} is not installed beside {python}: {python} -m pip install '{name}>={wanted}'")
        elif _numbers(versions[name]) < least:
            problems.append(f"{name} {versions[name]} beside {python} is too old; {wanted} or newer is needed")
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 25, 1) of ``0.25.1+cu130``."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
