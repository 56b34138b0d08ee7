"""What run.jsonl says about the data: at the start of a run size and time of every shard, and a digest of each as soon as it is read.

A shard is read as a whole when it is checked, by a thread or when the loader opens it (data/token_shards.py); its SHA-256 comes with that.
A resumed run compares it with what an earlier part of the run has logged: one changed token, anywhere, is reported.
"""

import contextlib
import json
import sys

from gpt2_numba.data.regular_files import open_regular

KIND = "shard"  # of the object in run.jsonl
ROLES = {"training": "train_loader", "validation": "val_loader"}


def shard_facts(run):
    """{"training": [the facts of each shard, in the loader's order], "validation": [...]} of a PreparedRun."""
    return {role: [shard.facts for shard in getattr(run, loader).shards] for role, loader in ROLES.items()}


class ShardLog:
    """Logs the digests of the shards of a PreparedRun, in the first process, which reads all shards in the end."""

    def __init__(self, run, write, earlier=()):
        """write: function (kind, step, **values), as RunLog.write. earlier: from earlier_digests, if the run is resumed."""
        self._waiting = [(role, shard) for role, loader in ROLES.items() for shard in getattr(run, loader).shards]
        self._write, self._earlier = write, dict(earlier)

    def look(self, step):
        """Log the digests that have become known. step: the number of steps done."""
        known = [(role, shard) for role, shard in self._waiting if shard.sha256]
        if not known:
            return
        self._waiting = [(role, shard) for role, shard in self._waiting if not any(shard is one for _, one in known)]
        for role, shard in known:
            name = shard.facts["name"]
            before = self._earlier.get((role, name), shard.sha256)
            if before != shard.sha256:
                print(
                    f"warning: {name} ({role} data) is not the file that an earlier part of this run has read: "
                    f"SHA-256 {shard.sha256[:12]}, before {before[:12]}",
                    file=sys.stderr,
                )
            self._write(KIND, step, data=role, sha256=shard.sha256, **shard.facts)


def earlier_digests(path):
    """{(role, name): SHA-256} that a run.jsonl holds, the latest of each; empty if it cannot be read. Other lines are skipped."""
    found = {}
    with contextlib.suppress(OSError), open_regular(path, "r", encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                values = json.loads(line) if f'"{KIND}"' in line else {}
                if values.get("kind") == KIND:
                    found[str(values["data"]), str(values["name"])] = str(values["sha256"])
    return found
