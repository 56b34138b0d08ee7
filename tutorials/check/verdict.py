"""What the check found."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Verdict:
    """What the check found. `failure` is one of failures.KINDS, or "" for a pass. True for a pass."""

    exercise: str
    path: Path
    failure: str
    message: str = ""
    size: str = ""  # at which it failed
    own_hint: str = ""  # for this very failure
    hints: dict = field(default_factory=dict)  # the exercise's
    printed: str = ""  # the first lines that the learner's code printed
    table: str = ""  # of accesses
    pictures: list = field(default_factory=list)  # as dicts, see drawing.from_json
    all_pictures: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    kernels: dict = field(default_factory=dict)  # name of each launched kernel -> its arguments, see compiling.describe_arguments
    float64_refused: bool = False
    local_refused: bool = False

    @property
    def passed(self):
        return not self.failure

    def __bool__(self):
        return self.passed

    def fail(self, kind, message):
        """Turn a pass into a failure of the compiled code, of which the pictures say nothing."""
        self.failure, self.message, self.pictures = kind, message, []

    def _ipython_display_(self):
        """Show nothing: `check` has printed it."""
