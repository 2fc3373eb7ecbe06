"""Where the shipped presets are: the top-level folders of a checkout, or their copies inside an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from evomerge.errors import EvomergeError

PresetKind = Literal["search_spaces", "fitness", "experiments"]


def preset_dir(kind: PresetKind) -> Path:
    """The folder of one kind of presets.

    A wheel carries them under ``evomerge/_presets`` (see scripts/packaging_presets.py); a checkout and an editable
    installation read the top-level folders themselves.

    Raises:
        EvomergeError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_presets" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise EvomergeError(f"the presets {kind!r} are missing beside {package}; reinstall evomerge")
