"""What became of each part of the data: rows of tables, members of archives, files of folders."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tavq_plugin.data.records import Reject, Rejection
from tavq_plugin.io.counted import counted

SYSTEM_FILES = "system files"  # .DS_Store, ._0.png, __MACOSX/0.png


@dataclass
class ReadCounts:
    """Numbers of parts; a reader checks at its end that each part came out as a record, a rejection or a skip."""

    parts: int = 0  #: rows, members or files
    used: int = 0  #: parts that are in a record; a record may have several
    rejected: int = 0  #: parts that are in a rejection
    skipped: Counter[str] = field(default_factory=Counter)  #: kind → number of parts that are no data of ours

    def take(self, number: int = 1) -> None:
        """Count parts that came in, and are in a record."""
        self.parts += number
        self.used += number

    def skip(self, kind: str, number: int = 1) -> None:
        """Count parts that came in, and are no data of ours; nothing for the number 0."""
        if number:
            self.parts += number
            self.skipped[kind] += number

    def refuse(self, reject: Reject, rejection: Rejection, number: int = 1) -> None:
        """Reject parts that came in."""
        self.parts += number
        self.rejected += number
        reject(rejection)

    def check(self, place: object) -> None:
        """Raise RuntimeError if a part is unaccounted for."""
        out = self.used + self.rejected + self.skipped.total()
        if self.parts != out:
            raise RuntimeError(
                f"{place}: {self.parts} rows, members or files came in, but {out} were accounted for; this is a fault "
                "of the reader: please report it"
            )

    def told(self) -> str:
        """The kinds of parts that were skipped, in words; "" if there are none.

        >>> ReadCounts(skipped=Counter({"system files": 2, ".gif": 1})).told()
        'not read: 2 system files, 1 .gif'
        """
        kinds = ", ".join(counted(number, kind) for kind, number in self.skipped.most_common())
        return f"not read: {kinds}" if kinds else ""
