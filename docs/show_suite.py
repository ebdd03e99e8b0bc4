"""Put what a comparison on many data sets found where it is told, so that no number is typed.

python docs/show_suite.py FOLDER

The folder is one that ``jaxbalance compare`` wrote for a folder of data sets. The page is written
anew, and of the README the paragraph between marks.
"""

import json
import pathlib
import re
import shutil
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- suite: .*? -->\n).*?(<!-- end of suite -->)", re.DOTALL)
HEAD = """# What helps, how often, how much

All methods of [`jaxbalance compare`](compare.md#a-whole-folder-of-data-sets) on small public tables
with two classes: the KEEL collection of imbalanced data sets, and those of ADBench with fewer than
10,000 rows. One network (an MLP), three seeds, two step sizes, 300 steps: a sensible budget for
each, and not the best that could be had on any. Many KEEL sets are cut from the same source, so the
tests are surer than they should be.

Everything below was written by `python docs/show_suite.py FOLDER` from that run.
"""


def main(folder: pathlib.Path, root: pathlib.Path = ROOT) -> None:
    """Copy the summary and the picture, and put it in short."""
    pages = root / "docs" / "pages"
    text = (folder / "suite.md").read_text()
    text = re.sub(r"^# ", "## ", re.sub(r"^## ", "### ", text, flags=re.MULTILINE), count=1)
    text = text.replace("(critical_difference.png)", "(images/critical_difference.png)")
    (pages / "compare-suite.md").write_text(f"{HEAD}\n{text.rstrip()}\n")
    shutil.copy(folder / "critical_difference.png", pages / "images" / "critical_difference.png")
    shown = in_short(json.loads((folder / "suite.json").read_text()))
    readme = root / "README.md"
    readme.write_text(MARKED.sub(lambda m: f"{m[1]}\n{shown}\n\n{m[2]}", readme.read_text()))


def in_short(stored: dict) -> str:
    """The paragraph of the README."""
    main, precision = (stored["summaries"][m] for m in ("balanced_accuracy", "average_precision"))
    better = above_plain(main)
    gains = [100 * row["gains"]["quartiles"][1] for row in better]
    by = f", by {min(gains):.1f} to {max(gains):.1f} points in the median" if better else ""
    most = max(row["single_wins"] for row in main["methods"])
    sentences = (
        "What helps in general?",
        f"On [{main['data_sets']} public two-class tables](docs/pages/compare-suite.md)",
        f"{len(better) or 'none'} of {len(main['methods']) - 1} remedies are significantly better",
        f"than plain training in balanced accuracy{by}; the best average rank is that of",
        f"{main['methods'][0]['method']}.",
        f"In average precision {len(above_plain(precision)) or 'none'} are. Taken alone,",
        f"{f'no more than {most}' if most else 'none'} of the {main['data_sets']} tables shows the",
        "same of any one remedy.",
    )
    return textwrap.fill(
        " ".join(sentences), width=100, break_long_words=False, break_on_hyphens=False
    )


def above_plain(summary: dict) -> list[dict]:
    """The remedies that are significantly better."""
    rows = {row["method"]: row for row in summary["methods"]}
    level = rows["plain"]["average_rank"]
    return [row for row in rows.values() if row["differs"] and row["average_rank"] < level]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
