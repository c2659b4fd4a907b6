"""What an attack came to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Finding:
    """One row of docs/reliability.md's table.

    Args:
        promise: What was attacked, such as "a secret is read at most once".
        attack: How, with what a trial is.
        trials: How many there were.
        violations: A line for each that broke the promise. No keys, secrets or passphrases.
        note: Figures that belong to it.

    """

    promise: str
    attack: str
    trials: int = 0
    violations: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, holds: bool, otherwise: str) -> bool:
        """Note a violation unless something holds; return whether it does."""
        if not holds:
            self.violations.append(otherwise)
        return holds

    def row(self) -> str:
        """Return the table's row."""
        cells = (self.promise, self.attack, f"{self.trials:,}", str(len(self.violations)), self.note)
        return f"| {' | '.join(cells)} |"


HEAD = "| promise | attack | trials | violations | figures |\n|---|---|---|---|---|"


def median_and_worst(seconds: Sequence[float]) -> str:
    """Describe some times."""
    return f"median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s" if seconds else "none"
