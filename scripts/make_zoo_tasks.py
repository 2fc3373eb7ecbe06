"""Write the zoo's task documents, task YAMLs and fitness presets under fitness/."""

from pathlib import Path

from evomerge.zoo.documents import files
from evomerge.zoo.vision_lessons import document_files


def main() -> None:
    root = Path(__file__).resolve().parent.parent / "fitness"
    made = {**files(), **document_files()}
    for name, text in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(made)} files under {root}")


if __name__ == "__main__":
    main()
