"""Write the parity cases with real PEFT, or check the written ones against the format page.

    python tests/parity/generate.py [--out DIR] [--only GLOB] [--list] [--check]
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: PEFT writes sets in hash order, numeric libraries split sums by thread, and no model may come from a hub. Bytecode
#: does not belong in the source tree.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
               "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "cases", help="folder of the cases")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose name matches")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--check", action="store_true", help="read the written cases and check them, write nothing")
    arguments = parser.parse_args()
    settle_environment()

    from tables import all_cases

    cases = [case for case in all_cases() if fnmatch.fnmatchcase(case.name, arguments.only)]
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    if arguments.check:
        from oracle.check import check_folder

        return check_folder(arguments.out, arguments.only, {case.name for case in cases})
    return write(cases, arguments.out, whole=arguments.only == "*")


def settle_environment() -> None:
    """Restart with the environment that makes two runs write the same bytes."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})


def write(cases: list, out: Path, whole: bool) -> int:
    import warnings

    import torch
    import transformers

    from oracle.record import record

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()

    if whole and out.exists():
        for stale in {folder.name for folder in out.iterdir()} - {case.name for case in cases}:
            shutil.rmtree(out / stale)
    failures = 0
    start = time.monotonic()
    for case in cases:
        try:
            record(case, out / case.name)
        except Exception as error:
            failures += 1
            shutil.rmtree(out / case.name)
            notes = " ".join(getattr(error, "__notes__", [f"in case {case.name}"]))
            print(f"FAIL {notes}\n     {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{len(cases) - failures} cases written, {failures} failed, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
