"""Convolutions: kernel, stride, padding, groups, and what dilation allows."""

from oracle.spec import (Case, active, adalora, base_weights, dora, fails, forward, ia3, lora, merge, train)

from .common import conv2d, parade, parade_case, tour

#: Every shape is tested with LoRA and DoRA.
SHAPES = [
    ("1x1_stride_2_dilation_2", conv2d(k=1, stride=2, dilation=2)),
    ("5x5_stride_2_padding_2_no_bias", conv2d(cout=4, k=5, stride=2, padding=2, bias=False)),
    ("odd_picture", conv2d(h=5, w=7, k=3, stride=2, padding=1)),
]

#: DoRA's norm reads the grouped factors as if they were not grouped; the numbers are still PEFT's.
GROUPED = {"plain": lora("conv2d", r=4), "biased": lora("conv2d", r=2, lora_bias=True),
           "magnitudes": dora("conv2d", r=4)}

CASES = [
    *(parade_case(f"conv_{name}", model, {"plain": lora("conv2d"), "magnitudes": dora("conv2d", "lin0", r=2)},
                  gradients=True, merged=True) for name, model in SHAPES),
    # Merging a grouped LoRA convolution is an error.
    Case("conv_groups", conv2d(cin=4, groups=2), GROUPED,
         [*parade(GROUPED, gradients=True), train("sgd", 0.05, 3), forward(), active("plain"), forward(),
          train("adamw", 0.01, 3), forward(), fails(merge(), "conv2d"), forward(), base_weights()]),
    parade_case("conv_depthwise", conv2d(cin=4, cout=4, groups=4),
                {"r_4": lora("conv2d", r=4), "r_8": lora("conv2d", r=8)}, gradients=True),
    # LoRA's branch ignores dilation; the methods that change the kernel or scale channels do not.
    parade_case("conv_adalora_stride_padding_dilation", conv2d(stride=2, padding=1, dilation=2),
                {"first": adalora("conv2d")}, gradients=True, merged=True),
    Case("conv_ia3_groups_dilation_no_bias", conv2d(cin=4, groups=2, dilation=2, bias=False), {"first": ia3("conv2d")},
         tour(train("sgd", 0.05, 3))),
    Case("conv_ia3_groups_dilation_feedforward", conv2d(cin=4, groups=2, dilation=2),
         {"first": ia3("conv2d", "lin0", feedforward=["conv2d"])}, tour(train("adamw", 0.02, 3))),
]
