"""`python -m tests.docs`: write the generated parts of the pages in docs/ anew. `make docs` does so first."""

from __future__ import annotations

from tests.docs import facts, logos, pages


def main() -> None:
    for page in pages.pages():
        text = page.read_text()
        if (new := pages.filled(text, facts.write)) != text:
            page.write_text(new)
            print(f"written anew: {page.relative_to(pages.ROOT)}")
    folder = pages.DOCS / "logos"
    folder.mkdir(exist_ok=True)
    for name, drawn in logos.all_of_them().items():
        if not (folder / name).is_file() or (folder / name).read_text() != drawn:
            (folder / name).write_text(drawn)
            print(f"drawn anew: docs/logos/{name}")


if __name__ == "__main__":
    main()
