"""Write the zoo's task documents, task YAMLs and fitness presets under fitness/."""

from pathlib import Path

from evomerge.zoo.documents import files


def main() -> None:
    root = Path(__file__).resolve().parent.parent / "fitness"
    for name, text in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(files())} files under {root}")


if __name__ == "__main__":
    main()
