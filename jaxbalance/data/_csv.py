"""Data sets from tables in text."""

import os
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxbalance._check import InputError
from jaxbalance.data import _columns, _paths, _wording
from jaxbalance.data._dataset import Dataset, Parts, from_arrays

if TYPE_CHECKING:
    import pandas as pd

_TARGET_NAMES = ("target", "label", "class", "y")


def read_csv(path: str | os.PathLike[str], *, target: str | None = None) -> Dataset:
    r"""Read a table of text with a header line: commas, or tabs where the name ends in .tsv[.gz].

    Numeric columns stay as they are, an empty field being a missing value; True and False become 1
    and 0. Any other column, dates included, becomes one column "name=level" for each distinct
    value, "missing" being one of them where fields are empty.

    Args:
      path: the file; .gz is unpacked on the way.
      target: the column that holds the classes. None takes the one column called target, label,
        class or y in upper or lower case; no column is ever guessed by its place.

    Returns:
      The :class:`Dataset`, named after the file.

    Raises:
      InputError: (a ValueError) in one line: no pandas, no file or one that cannot be parsed, a
        column without a name, no such target or none that goes without saying, rows without a
        class, a text column with more than 100 levels, or whatever :func:`from_arrays` refuses.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile("w", suffix=".csv")
    >>> _ = file.write("size,colour,Class\n1.5,red,a\n,blue,b\n")
    >>> file.flush()
    >>> read_csv(file.name).feature_names
    ('size', 'colour=blue', 'colour=red')
    >>> file.close()
    """
    return from_arrays(**table_parts(path, target)._asdict())


def table_parts(path: str | os.PathLike[str], target: str | None) -> Parts:
    """The columns of a table and, apart from them, its target column."""
    file = _paths.existing(path)
    frame = _frame(file)
    names = [str(name) for name in frame.columns]
    label = _label_column(file, names, target)
    missing = int(frame[label].isna().sum())
    if missing:
        raise InputError(
            f"{file}: {missing} of {len(frame)} rows have no value in the target column {label!r}; "
            "drop these rows or label them"
        )
    columns = [_column(file, name, frame[name]) for name in names if name != label]
    table = _columns.joined(str(file), columns)
    return Parts(
        inputs=table.values,
        labels=frame[label].to_numpy(),
        name=_paths.stem(file),
        class_names=None,
        feature_names=table.names,
        test_indices=None,
    )


def _frame(file: Path) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError(
            f'{file}: reading tables of text needs pandas; pip install "jaxbalance[data]"'
        ) from error
    separator = "\t" if file.name.lower().endswith((".tsv", ".tsv.gz")) else ","
    try:
        with warnings.catch_warnings():
            # Of rows longer than the header, pandas would warn and drop the fields at the end.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # index_col=False, or else it would take the first field of such rows for their name.
            frame = pd.read_csv(
                file, sep=separator, skipinitialspace=True, low_memory=False, index_col=False
            )
    except pd.errors.ParserWarning as error:
        raise InputError(f"{file}: rows have more fields than the header; repair it") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{file}: cannot be read as a table ({_wording.reason(error)}); repair the file"
        ) from error
    # Most often row numbers, which tell the class of sorted rows.
    if any(str(name).startswith("Unnamed: ") for name in frame.columns):
        raise InputError(f"{file}: a column has no name in the header line; name it or drop it")
    return frame


def _label_column(file: Path, names: list[str], target: str | None) -> str:
    if target is not None:
        if target not in names:
            raise InputError(
                f"{file}: no column {target!r}{_wording.suggestion(target, names)}; "
                f"the columns are {_wording.listed(names)}"
            )
        return target
    usual = [name for name in names if name.strip().lower() in _TARGET_NAMES]
    if len(usual) == 1:
        return usual[0]
    problem = f"{len(usual)} columns" if usual else "no column"
    raise InputError(
        f"{file}: {problem} called {', '.join(_TARGET_NAMES[:-1])} or y; say which column to "
        f"predict with --target NAME; the columns are {_wording.listed(names)}{_header_hint(names)}"
    )


def _header_hint(names: list[str]) -> str:
    if 2 * sum(_is_number(name) for name in names) > len(names):
        return " (the first line looks like numbers: is the header line missing?)"
    if len(names) == 1 and ";" in names[0]:
        return " (fields seem to be separated by semicolons: save them with commas)"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(file: Path, name: str, column: "pd.Series[Any]") -> _columns.Columns:
    if column.dtype.kind in "biuf":
        return _columns.numeric(name, column.to_numpy())
    return _columns.categorical(str(file), name, column.to_list(), column.isna().to_numpy())
