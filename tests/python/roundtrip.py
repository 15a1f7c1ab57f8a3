"""Real PEFT loads what the Rust program saved, and the reverse; their outputs agree within 1e-5.

    python tests/python/roundtrip.py DIR [--rust COMMAND] [--only GLOB]

1. PEFT writes base models, inputs, adapters and outputs to DIR/from-python.
2. The Rust program loads those adapters, compares the outputs and saves each adapter again; then it makes an adapter of
   its own for each base model, trains it for some steps and saves it to DIR/from-rust, with its output.
3. PEFT loads those in two ways and compares the outputs; keys, shapes and configs are compared with its own files; what
   it saves again has the same bytes.

The last line is `N passed, N failed`; the exit status is 1 if anything failed. Needs `requirements.txt`.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(REPOSITORY / "tests" / "parity"))

from generate import settle_environment  # noqa: E402

if __name__ == "__main__":
    settle_environment()

import torch  # noqa: E402
import transformers  # noqa: E402
from oracle.adapters import WEIGHTS, produce  # noqa: E402
from oracle.models import base_tensors, build, draw_inputs, run  # noqa: E402
from oracle.record import case_json, record, seed  # noqa: E402
from oracle.spec import Adapter  # noqa: E402
from peft import (  # noqa: E402
    PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict)
from roundtrip_cases import TOLERANCE, Trip, all_trips  # noqa: E402
from roundtrip_compare import (  # noqa: E402
    Mismatch, check_pruned, distance, read_config, same_bytes, same_config, same_tensors)
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

RUST = "cargo run --release -q -p peft-tests --bin roundtrip --"

#: How far an adapter must change the output, so that one without effect is detected.
VISIBLE = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where all files go; from-python, from-rust and "
                                                                 "resaved in it are replaced")
    parser.add_argument("--rust", default=RUST, metavar="COMMAND", help=f"the Rust program (default: {RUST})")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose name matches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()

    trips = [trip for trip in all_trips() if fnmatch.fnmatchcase(trip.name, arguments.only)]
    if not trips:
        parser.error(f"no case matches {arguments.only}")
    return report(trips, Roundtrip(arguments.folder.resolve(), arguments.rust))


def report(trips: list[Trip], roundtrip: Roundtrip) -> int:
    """Run all steps and print a table, one line per case."""
    results = roundtrip.run(trips)
    width = max(len(trip.name) for trip in trips)
    print(f"{'case':<{width}}  {'PEFT to Rust':<16}  {'Rust to PEFT':<16}")
    passed, failures = 0, []
    for trip in trips:
        cells = []
        for direction in ("PEFT to Rust", "Rust to PEFT"):
            result = results[trip.name, direction]
            if isinstance(result, Exception):
                failures.append(f"FAIL {trip.name}, {direction}: {result}")
                cells.append("FAIL")
            else:
                passed += result is not None
                cells.append("-" if result is None else f"ok {result}")
        print(f"{trip.name:<{width}}  {cells[0]:<16}  {cells[1]:<16}".rstrip())
    for trip in trips:
        if trip.unavailable:
            print(f"- {trip.name}: PEFT cannot write it here ({trip.unavailable})")
    print(*failures, f"{passed} passed, {len(failures)} failed", sep="\n")
    return 1 if failures or not passed else 0


#: The largest error as text; None where PEFT cannot write the adapter; or what went wrong.
Result = str | None | Exception


class Roundtrip:
    """The folders of one run, and the Rust program on the other side."""

    def __init__(self, folder: Path, rust: str) -> None:
        self.rust = shlex.split(rust)
        self.from_python, self.from_rust = folder / "from-python", folder / "from-rust"
        #: Base models of adapters that PEFT cannot write.
        self.bases_alone = folder / "from-python-bases"
        self.resaved = folder / "resaved"
        for stale in (self.from_python, self.from_rust, self.bases_alone, self.resaved):
            shutil.rmtree(stale, ignore_errors=True)
            stale.mkdir(parents=True)

    def folder(self, trip: Trip) -> Path:
        """Where the case from PEFT's side is."""
        return (self.bases_alone if trip.unavailable else self.from_python) / trip.name

    def run(self, trips: list[Trip]) -> dict[tuple[str, str], Result]:
        results: dict[tuple[str, str], Result] = {}
        written = []
        for trip in trips:
            error = attempt(lambda: self.write(trip))
            if isinstance(error, Exception):
                results[trip.name, "PEFT to Rust"] = results[trip.name, "Rust to PEFT"] = error
            else:
                written.append(trip)
        has_adapters = any(not trip.unavailable for trip in written)
        has_bases = any(trip.unavailable for trip in written)
        read = self.call("read", self.from_python) if has_adapters else {}
        made = self.call("write", self.from_python, self.from_rust) if has_adapters else {}
        made |= self.call("write", self.bases_alone, self.from_rust) if has_bases else {}
        for trip in written:
            results[trip.name, "PEFT to Rust"] = None if trip.unavailable else attempt(
                lambda: self.check_read(trip, said_ok(read, trip)))
            results[trip.name, "Rust to PEFT"] = attempt(lambda: self.check_made(trip, said_ok(made, trip)))
        return results

    def write(self, trip: Trip) -> None:
        """Step 1 for one case: a case of the parity format, and how to make such an adapter on the other side."""
        folder = self.folder(trip)
        if trip.stand_in:
            write_base(trip, trip.stand_in, folder)
        else:
            record(trip.case(), folder)
        (folder / "roundtrip.json").write_text(json.dumps(trip.recipe(), indent=2))

    def call(self, *words: str | Path) -> dict[str, str]:
        """Step 2: run the Rust program; its line for each case."""
        done = subprocess.run([*self.rust, *map(str, words)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        lines = {}
        for line in done.stdout.splitlines():
            match line.split():
                case [("ok" | "FAIL"), name, *_]:
                    lines[name] = line
        if not lines:
            command = shlex.join([*self.rust, *map(str, words)])
            sys.exit(f"`{command}` ended with status {done.returncode} and without a result")
        return lines

    def check_read(self, trip: Trip, line: str) -> str:
        """Check the reading side: what it saved again is what PEFT saved."""
        theirs = self.folder(trip) / "adapters" / trip.adapter_name
        ours = adapter_folder(self.folder(trip) / "resaved", trip)
        same_bytes(ours / WEIGHTS, theirs / WEIGHTS)
        same_config(read_config(ours), read_config(theirs))
        return line.split("max_abs=")[-1].split()[0]

    def check_made(self, trip: Trip, line: str) -> str:
        """Step 3 for one case."""
        folder = self.from_rust / trip.name
        ours, theirs = adapter_folder(folder, trip), self.folder(trip) / "adapters" / trip.adapter_name
        tensors = load_file(ours / WEIGHTS)
        self.check_form(trip, tensors, read_config(ours), load_file(theirs / WEIGHTS), read_config(theirs))

        seed(trip.case())
        base = build(trip.model)
        same_tensors(base_tensors(base), load_file(self.folder(trip) / "base.safetensors"))
        exchanged = load_file(folder / "exchanged.safetensors")
        expected = exchanged.pop("output")
        if distance(output(copy.deepcopy(base), exchanged), expected) < VISIBLE:
            raise Mismatch("the adapter leaves the output as it was")

        loaded = without_missing_keys(lambda: PeftModel.from_pretrained(
            copy.deepcopy(base), str(ours), adapter_name=trip.adapter_name))
        injected = self.injected(trip, copy.deepcopy(base), tensors, ours)
        errors = [distance(output(model, exchanged), expected) for model in (loaded, injected)]
        if not max(errors) <= TOLERANCE["atol"]:
            raise Mismatch(f"outputs are off by {errors[0]:.1e} after loading, {errors[1]:.1e} after injecting")

        again = self.resaved / trip.name
        loaded.save_pretrained(str(again))
        same_bytes(ours / WEIGHTS, adapter_folder(again, trip) / WEIGHTS)
        same_config(read_config(ours), read_config(adapter_folder(again, trip)), "auto_mapping")
        return f"{max(errors):.1e}"

    def check_form(self, trip: Trip, ours: dict[str, Tensor], our_config: dict, theirs: dict[str, Tensor],
                   their_config: dict) -> None:
        """Keys, shapes and config are those that PEFT writes for the same arguments."""
        if ours.keys() != theirs.keys():
            raise Mismatch(f"keys: PEFT's only {sorted(theirs.keys() - ours.keys())}, ours only "
                           f"{sorted(ours.keys() - theirs.keys())}")
        excluded = ["auto_mapping"]  # names the Python class of the model
        if trip.pruned:
            excluded.append("rank_pattern")  # results from training
            check_pruned(ours, our_config["rank_pattern"], their_config["rank_pattern"])
        else:
            forms = [{key: (tensor.dtype, tensor.shape) for key, tensor in side.items()} for side in (ours, theirs)]
            for key, form in forms[1].items():
                if forms[0][key] != form:
                    raise Mismatch(f"{key} is {forms[0][key]}, PEFT's {form}")
        same_config(our_config, their_config, *excluded)

    def injected(self, trip: Trip, base: nn.Module, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
        """The low-level way: inject with the config, then set the tensors."""
        config = PeftConfig.from_pretrained(str(folder))
        if trip.pruned:  # a bare model cannot take a rank pattern
            model = get_peft_model(base, config, adapter_name=trip.adapter_name)
        else:
            model = inject_adapter_in_model(config, base, adapter_name=trip.adapter_name)
            tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
        result = set_peft_model_state_dict(model, tensors, adapter_name=trip.adapter_name)
        # PEFT writes the bias of a copied module twice and reads it once.
        unexpected = [key for key in result.unexpected_keys if not key.endswith(".modules_to_save.bias")]
        if unexpected:
            raise Mismatch(f"PEFT does not know the keys {unexpected}")
        return model.eval()


def write_base(trip: Trip, stand_in: Adapter, folder: Path) -> None:
    """A case without a loadable adapter, and next to it an adapter of the same form."""
    seed(trip.case())
    base = build(trip.model)
    inputs = draw_inputs(trip.model, base)
    produce(stand_in, trip.adapter_name, base, inputs, folder / "adapters" / trip.adapter_name)
    for name, tensors in (("base", base_tensors(base)), ("inputs", inputs), ("expected", {})):
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "case.json").write_text(case_json(trip.case(), []))


def attempt(work: Callable[[], str | None]) -> Result:
    try:
        return work()
    except Exception as error:
        kind = "" if isinstance(error, Mismatch) else f"{type(error).__name__}: "
        return Mismatch(f"{kind}{error}")


def said_ok(lines: dict[str, str], trip: Trip) -> str:
    """The Rust program's line for the case, if it is a good one."""
    line = lines.get(trip.name, "the Rust program did not mention it")
    if not line.startswith("ok "):
        raise Mismatch(line)
    return line


def adapter_folder(folder: Path, trip: Trip) -> Path:
    """Where both sides put an adapter that is saved to `folder`."""
    return folder if trip.adapter_name == "default" else folder / trip.adapter_name


@torch.no_grad()
def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return run(model.eval(), inputs)


def without_missing_keys(load: Callable[[], PeftModel]) -> PeftModel:
    """PEFT only warns about keys that a file lacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load()
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise Mismatch(str(warning.message))
    return model


if __name__ == "__main__":
    sys.exit(main())
