#!/bin/sh
# Runs the files of slurm-sdk as Testyard tests and proves that they did what plain pytest does:
# each file's counts must be the same, every file must have passed, and the sums are printed.
#
#   TESTYARD   the program (default: testyard)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
project=$("$here/fetch.sh")
cd "$project"
[ -s testyard_counts.json ] || "$here/plain.sh"

"${TESTYARD:-testyard}" run "$project" --report jsonl="$project/.venv/results.jsonl" "$@"

.venv/bin/python - <<'PYTHON'
import json
import sys

with open("testyard_counts.json") as file:
    plain = json.load(file)
passed = set()
with open(".venv/results.jsonl") as file:
    for line in file:
        record = json.loads(line)
        if record["event"] == "test-finished" and record["result"] == "passed":
            passed.add(record["name"])
missing = sorted(set(plain) - passed)
if missing:
    sys.exit("not passed under Testyard: " + ", ".join(missing))
sums = {word: sum(counts[word] for counts in plain.values()) for word in ("passed", "failed", "skipped")}
print(f"the same as plain pytest in {len(plain)} files:", ", ".join(f"{n} {word}" for word, n in sums.items()))
PYTHON
