"""Build step named in pyproject.toml: wheels and source archives carry the preset folders under evomerge/_presets."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

FOLDERS = ("search_spaces", "fitness", "experiments")


class BuildWithPresets(build_py):
    """build_py that also copies the top-level preset folders; an editable installation reads them where they are."""

    def run(self) -> None:
        """Build the package, then copy the presets beside it."""
        super().run()
        if not self.editable_mode:
            for source, target in self._preset_files().items():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(source, target, preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """Files a source archive needs."""
        extra = [Path(__file__).resolve().relative_to(Path.cwd().resolve()).as_posix(), "constraints.txt"]
        return [*super().get_source_files(), *self._preset_files(), *extra]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files this step writes."""
        return [*super().get_outputs(include_bytecode), *self._preset_files().values()]

    def _preset_files(self) -> dict[str, str]:
        return {
            path.as_posix(): str(Path(self.build_lib, "evomerge", "_presets", path))
            for folder in FOLDERS
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.parts)
        }
