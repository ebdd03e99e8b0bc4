"""Put what comparisons of regressions found into their page, so that no number there is typed.

python docs/show_regression.py FOLDER [FOLDER ...]

Every folder is one that ``jaxbalance compare --task regression`` wrote; the page has a place for
each, marked with the name of its data.
"""

import json
import pathlib
import re
import shutil
import sys

PAGE = pathlib.Path(__file__).resolve().parent / "pages" / "compare-regression.md"


def main(folder: pathlib.Path) -> None:
    """Copy the table, the verdict, the notes and the pictures of a report."""
    text = (folder / "report.md").read_text()
    facts = json.loads((folder / "report.json").read_text())
    name, budget = facts["data"]["name"], facts["budget"]
    table = re.search(r"^\| method.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL).group()
    sizes = ", ".join(f"{size:g}" for size in budget["step_sizes"])
    about = (
        f"{facts['data']['train']} training examples, {budget['seeds']} seeds, "
        f"{budget['steps']} steps, step sizes {sizes}, {facts['seconds']:.0f} s."
    )
    lines = "\n".join(f"- {line}" for line in [*facts["verdict"], *facts["notes"]])
    place = re.compile(rf"(<!-- report: {name} -->\n).*?(<!-- end of report -->)", re.DOTALL)
    page = PAGE.read_text()
    if not place.search(page):
        raise SystemExit(f"{PAGE.name} has no place for {name}")
    PAGE.write_text(place.sub(lambda m: f"{m[1]}\n{about}\n\n{table}\n\n{lines}\n\n{m[2]}", page))
    for picture in ("error_by_target", "learning_curves"):
        shutil.copy(folder / f"{picture}.png", PAGE.parent / "images" / f"{picture}_{name}.png")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(pathlib.Path(argument))
