"""Write the repository's own parity cases in half precision with real PEFT.

    python tests/parity/half.py [--out DIR] [--only GLOB]

The folders of `half/` whose names have dashes are the format page's own cases, and are not written here.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import warnings
from pathlib import Path

from generate import HERE, settle_environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "half", help="folder of the cases")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose name matches")
    arguments = parser.parse_args()
    settle_environment()

    import torch
    import transformers

    from oracle.half import record_half
    from tables.half import CASES

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    failures = 0
    for half in CASES:
        if not fnmatch.fnmatchcase(half.case.name, arguments.only):
            continue
        try:
            record_half(half, arguments.out / half.case.name)
        except Exception as error:
            failures += 1
            shutil.rmtree(arguments.out / half.case.name)
            notes = " ".join(getattr(error, "__notes__", [f"in case {half.case.name}"]))
            print(f"FAIL {notes}\n     {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
