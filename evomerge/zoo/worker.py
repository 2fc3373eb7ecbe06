"""One build in its own process: `python -m evomerge.zoo.worker NAME OUTPUT_DIR`; JSON progress lines on stdout.

A process of its own keeps torch out of the caller, pins the threads before torch starts, and dies with its pipe.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.files import atomic_write_json
from evomerge.zoo import catalogue


def main(name: str, output_dir: Path) -> int:
    """Build one model (or one phase of it, `NAME@PHASE`) into an existing folder and write its manifest last."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        details = _build(name, output_dir)
    except UserError as error:
        _send(error=str(error))
        return 1
    model = catalogue.look_up(name.partition("@")[0])
    manifest: dict[str, Any] = {
        "name": name,
        "version": model.version,
        "description": model.description,
        "group": model.group,
        "parent": model.parent,
        "recipe": details,
        "seconds": round(time.perf_counter() - started, 1),
        "core_seconds": round(time.process_time() - cpu_started, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
    }
    _sync(output_dir)
    atomic_write_json(output_dir / catalogue.MANIFEST, manifest)
    return 0


def _build(name: str, output_dir: Path) -> dict[str, Any]:
    model = catalogue.look_up(name.partition("@")[0])
    if model.group == "micro":
        from evomerge.zoo import micro

        return micro.build(name, output_dir, _send_step)
    if model.group == "vision":
        from evomerge.zoo import vision

        return vision.build(name, output_dir, _send_step)
    if model.group == "micro-lora":
        from evomerge.zoo import micro_lora

        return micro_lora.build(name, output_dir, _send_step)
    if model.parent is None:
        from evomerge.zoo import smollm2

        return smollm2.build_base(output_dir, catalogue.zoo_dir() / "downloads", lambda text: _send(text=text))
    from evomerge.zoo import fine_tune, lessons

    model_name, _, phase_text = name.partition("@")
    phases = lessons.EXPERTS[model_name]
    phase = int(phase_text) if phase_text else len(phases)
    parent_name = model.parent if phase == 1 else f"{model_name}@{phase - 1}"
    parent_dir = catalogue.zoo_dir() / parent_name
    details = fine_tune.fine_tune(parent_dir, output_dir, phases[phase - 1], _send_step)
    if phase > 1:
        details["phase_before"] = catalogue.read_manifest(parent_dir)
    return details


def _send(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _send_step(step: int, num_steps: int, loss: float) -> None:
    _send(step=step, num_steps=num_steps, loss=loss)


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        path.chmod(0o644)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
