"""The cases, as tables by theme."""

from importlib import import_module

from oracle.spec import Case

THEMES = ("lora", "options", "select", "conv", "dora", "inits", "adalora", "ia3", "loha", "lokr", "weighted", "mixed",
          "language", "sequences", "tying", "found", "fails", "fails_files")


def all_cases() -> list[Case]:
    cases = [case for theme in THEMES for case in import_module(f"tables.{theme}").CASES]
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two cases have the name {sorted(twice)}")
    return cases
