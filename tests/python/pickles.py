"""Writes `tests/fixtures/pickles`: files of tensors that torch saved, and hostile ones that look like them.

    python tests/python/pickles.py

The values of the sound ones are in `expected.safetensors`. What the hostile ones would run writes nothing and opens nothing.
"""

import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "pickles"


def tensors():
    generator = torch.Generator().manual_seed(7)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    whole = random(6, 5)
    return collections.OrderedDict(
        [
            ("layer.lora_A.weight", random(2, 5)),
            ("layer.lora_B.weight", torch.nn.Parameter(random(3, 2))),
            ("half", random(2, 3).half()),
            ("bfloat", random(2, 3).bfloat16()),
            ("double", random(4).double()),
            ("long", torch.arange(-2, 4)),
            ("int", torch.arange(5, dtype=torch.int32)),
            ("short", torch.arange(3, dtype=torch.int16)),
            ("byte", torch.arange(7, dtype=torch.uint8)),
            ("bool", torch.tensor([True, False, True])),
            ("scalar", torch.tensor(1.25)),
            ("empty", torch.zeros(0, 4)),
            ("whole", whole),
            ("rows", whole[2:4]),
            ("columns", whole[:, 1:4]),
            ("transposed", whole.t()),
            ("steps", random(9)[::3]),
            ("tied", whole),
        ]
    )


def sound():
    values = tensors()
    save_file(
        {name: value.detach().to(torch.uint8 if value.dtype == torch.bool else value.dtype).contiguous().clone() for name, value in values.items()},
        FOLDER / "expected.safetensors",
    )
    with_state = tensors()
    with_state._metadata = collections.OrderedDict([("", {"version": 1})])
    torch.save(with_state, FOLDER / "today.bin")
    torch.save(with_state, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(dict(tensors()), FOLDER / "protocol4.bin", pickle_protocol=4)


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rewritten(data, change, compression=zipfile.ZIP_STORED):
    """The archive with other members."""
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name in source.namelist():
            member = change(name.split("/", 1)[1], source.read(name))
            if member is not None:
                target.writestr(name, member)
    return buffer.getvalue()


def with_pickle(data, edit):
    return rewritten(data, lambda name, member: edit(member) if name == "data.pkl" else member)


def pair():
    return {"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.ones(3, 2)}


def rebuilt(shape, strides, offset=0):
    """A tensor of a small storage with another shape."""
    small = torch.arange(8, dtype=torch.float32)
    storage = small.untyped_storage()

    class Rebuilt:
        def __reduce__(self):
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, shape, strides, False, collections.OrderedDict())

    return Rebuilt()


def nested(levels):
    """A pickle of a list that holds the one before it twice, and so on: 2 to the power of `levels` when it is copied."""
    code = b"\x80\x02]q\x00"
    for level in range(levels):
        code += b"]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e"
    return code + b"."


def hostile():
    system, code = os.system, "true"
    with_system = {**pair(), "b.lora_A.weight": Call(system, code)}
    hooked = collections.OrderedDict([("hook", Call(system, code))])

    class Hooked:
        def __reduce__(self):
            storage = torch.ones(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (4,), (1,), False, hooked)

    plain = saved(pair())
    legacy = saved(pair(), _use_new_zipfile_serialization=False)
    files = {
        "only_a_call.bin": saved({"a.lora_A.weight": Call(system, code)}),
        "call_next_to_tensors.bin": saved(with_system),
        "call_in_hooks.bin": saved({**pair(), "c": Hooked()}),
        "eval_in_legacy.bin": saved({**pair(), "c": Call(eval, "1")}, _use_new_zipfile_serialization=False),
        "a_class_of_its_own.bin": saved({**pair(), "c": Call(pathlib.PurePosixPath, "x")}),
        "compressed.bin": rewritten(
            plain, lambda name, member: bytes(1 << 20) if name == "data/0" else member, zipfile.ZIP_DEFLATED
        ),
        "nested.bin": with_pickle(plain, lambda _: nested(200)),
        "deep.bin": with_pickle(plain, lambda _: b"\x80\x02" + b"(" * 3000 + b"t" * 3000 + b"."),
        "stride_of_zero.bin": saved({"a": rebuilt((1 << 20, 1 << 12), (0, 0))}),
        "expanded.bin": saved({"a": torch.ones(1).expand(4)}),
        "too_large.bin": saved({"a": rebuilt((1 << 20, 1 << 12), (1 << 12, 1))}),
        "overflow.bin": saved({"a": rebuilt((1 << 62, 1 << 62), (1 << 61, 1))}),
        "outside.bin": saved({"a": rebuilt((4,), (1,), 6)}),
        "negative.bin": saved({"a": rebuilt((-1, 4), (4, 1))}),
        "short_storage.bin": rewritten(plain, lambda name, member: member[:8] if name == "data/0" else member),
        "no_storage.bin": rewritten(plain, lambda name, member: None if name == "data/1" else member),
        "big_endian.bin": rewritten(plain, lambda name, member: b"big" if name == "byteorder" else member),
        "cut_off.bin": plain[: len(plain) * 2 // 3],
        "legacy_cut_off.bin": legacy[:-5],
        "legacy_pickle_cut_off.bin": legacy[:150],
        "plain_pickle.bin": pickle.dumps({"a": [1, 2, 3]}, protocol=2),
        "trainer.bin": saved({"epoch": 3, "model": pair(), "loss": 0.5, "name": "run"}),
        "a_list.bin": saved([torch.ones(2)]),
        "one_tensor.bin": saved(torch.ones(2)),
        "complex.bin": saved({"a": torch.ones(2, dtype=torch.complex64)}),
        "numpy.bin": numpy_archive(),
        "memo.bin": with_pickle(plain, lambda _: b"\x80\x02h\x05."),
        "instruction.bin": with_pickle(plain, lambda _: b"\x80\x02(i" + b"os\nsystem\n."),
    }
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)


def numpy_archive():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack("<f", 1.0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", array)
    return buffer.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    sound()
    hostile()
    print(f"torch {torch.__version__}: {len(list(FOLDER.iterdir()))} files")
