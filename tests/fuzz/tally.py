"""The results of a fuzzer: outcomes by number, and one line for each kind of failure."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one fuzzer.

    Attributes:
        outcomes: how often each outcome occurred, such as a status or the name of an error.
        failures: how often each kind of failure occurred.
        first: the first input of each kind of failure: what it was, and the seed that repeats it.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: str) -> None:
        """Count one case."""
        self.outcomes[outcome] += 1

    def fail(self, kind: str, seed: int, shown: str) -> None:
        """Count one failure.

        Args:
            kind: equal for failures that have one cause; without parts that differ from case to case.
            seed: repeats the case by `./run fuzz NAME --count 1 --seed SEED`.
            shown: the input, as far as a reader needs it.
        """
        self.failures[kind] += 1
        self.first.setdefault(kind, f"seed {seed}: {shown[:500]}")

    @contextmanager
    def memory_within(self, most: int, seed: int) -> Iterator[None]:
        """Count a failure if the peak memory of this process grows by more bytes."""
        at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first) << 10
        if grown > most:
            self.fail("memory grows", seed, f"{grown >> 20} MiB")

    def text(self) -> str:
        """Return the counts, and one line for each kind of failure."""
        lines = [f"{self.outcomes.total()} cases", *(f"  {n:8} {name}" for name, n in self.outcomes.most_common())]
        lines += [f"FAILED {n} times: {kind}; first {self.first[kind]}" for kind, n in self.failures.most_common()]
        return "\n".join(lines)
