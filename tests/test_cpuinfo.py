"""CPU features as three architectures write them."""

import pytest

from nybble import cpuinfo

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx2\nbugs\t\t: \n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp i8mm\n"
RISCV = "processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdcv_zicsr_zvl128b\nmmu\t\t: sv39\n"


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (X86, {"fpu", "sse2", "avx2"}),
        (ARM, {"fp", "asimd", "asimddp", "i8mm"}),
        (RISCV, {*"imafdcv", "zicsr", "zvl128b"}),
        ("isa : rv64gc\n", {*"gimafdc"}),
        ("processor : 0\n", set()),
        ("", set()),
    ],
)
def test_features(text: str, features: set[str]) -> None:
    assert cpuinfo.parse(text.splitlines()) == features


def test_the_first_processor_counts() -> None:
    assert cpuinfo.parse([*RISCV.splitlines(), *"isa : rv64gc".splitlines()]) >= {"v"}
