"""Put what a comparison on many data sets found into its page, so that no number there is typed.

python docs/show_suite.py FOLDER

The folder is one that ``jaxbalance compare`` wrote for a folder of data sets.
"""

import pathlib
import re
import shutil
import sys

PAGES = pathlib.Path(__file__).resolve().parent / "pages"
HEAD = """# What helps, how often, how much

All methods of [`jaxbalance compare`](compare.md#a-whole-folder-of-data-sets) on small public tables
with two classes: the KEEL collection of imbalanced data sets, and those of ADBench with fewer than
10,000 rows. One network (an MLP), three seeds, two step sizes, 300 steps: a sensible budget for
each, and not the best that could be had on any. Many KEEL sets are cut from the same source, so the
tests are surer than they should be.

Everything below was written by `python docs/show_suite.py FOLDER` from that run.
"""


def main(folder: pathlib.Path) -> None:
    """Copy the summary and the picture."""
    text = (folder / "suite.md").read_text()
    text = re.sub(r"^# ", "## ", re.sub(r"^## ", "### ", text, flags=re.MULTILINE), count=1)
    text = text.replace("(critical_difference.png)", "(images/critical_difference.png)")
    (PAGES / "compare-suite.md").write_text(f"{HEAD}\n{text.rstrip()}\n")
    shutil.copy(folder / "critical_difference.png", PAGES / "images" / "critical_difference.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
