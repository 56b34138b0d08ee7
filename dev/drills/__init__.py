"""Drills: faults tried against the real trainer, to see that no run is lost and none is silently wrong (docs/drills.md).

    python -m dev.drills                          all drills, in their long form
    python -m dev.drills kills damage --seed 7    two of them, with other random numbers
    python -m dev.drills kills --only 12          one try alone

A drill is a module of this package: its first lines say what is tried, and what is right.
"""

# In the order of the table.
DRILLS = (
    "kills", "damage", "fuzz", "full_disk", "read_only", "fsync", "two_runs", "signals", "streams", "data", "processes", "not_finite",
)  # fmt: skip
