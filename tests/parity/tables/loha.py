"""LoHa: the Hadamard product of two low-rank matrices."""

from oracle.spec import loha

from .common import CONV1D, conv2d, parade_case
from .delta import shared_cases

SMALL = conv2d(cin=3, cout=5, stride=2, h=7, w=6)

CASES = [
    *shared_cases("loha", loha, "hada_w1_b"),
    parade_case("loha_conv1d_effective", CONV1D, {
        "r_1": loha("conv1d", r=1, use_effective_conv2d=True), "r_3": loha("conv1d", r=3, use_effective_conv2d=True),
        "both": loha("conv1d", "lin0", use_effective_conv2d=True)}, merged=True),
    parade_case("loha_conv2d_effective", SMALL, {
        "r_1": loha("conv2d", r=1, use_effective_conv2d=True),
        "r_3": loha("conv2d", "lin0", r=3, alpha=4, use_effective_conv2d=True),
        "patterns": loha("conv2d", "lin0", use_effective_conv2d=True, rank_pattern={"conv2d": 4},
                         alpha_pattern={"conv2d": 3})}, merged=True),
    parade_case("loha_conv2d_effective_groups", conv2d(cin=4, cout=6, groups=2), {
        "first": loha("conv2d", alpha=4, use_effective_conv2d=True)}, merged=True),
]
