"""Put what a run of the demo found into the README, so that no number there is typed.

make demo && python docs/show_demo.py jaxbalance-report
"""

import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- demo: .*? -->\n).*?(<!-- end of demo -->)", re.DOTALL)


def main(report: pathlib.Path) -> None:
    """Copy the table, the verdict and the pictures of ``report``."""
    text = (report / "report.md").read_text()
    verdict = re.findall(r"^- (.*)$", text.split("| method")[0], re.MULTILINE)
    table = re.search(r"^\| method.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    legend = text.split(table.group())[1].strip().split("\n\n")[0]
    shown = "\n\n".join([table.group(), legend, *verdict])
    readme = ROOT / "README.md"
    readme.write_text(MARKED.sub(lambda m: f"{m[1]}\n{shown}\n\n{m[2]}", readme.read_text()))
    images = ROOT / "docs" / "pages" / "images"
    images.mkdir(exist_ok=True)
    for name in ("recall_by_class.png", "learning_curves.png"):
        shutil.copy(report / name, images / name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
