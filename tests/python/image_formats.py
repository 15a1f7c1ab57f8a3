"""Writes `tests/fixtures/image_formats/`: adapters of image models as other programs write them, and what they do to weights.

    python tests/python/image_formats.py [FOLDER]

`bases.json` has the names and shapes of tiny base models; their values follow from the names (`values`). `cases.json` has for each
adapter the base model that it is for and, of every tensor that it changes, three numbers: the sum, and the sums weighted by two fixed
patterns. diffusers and lycoris-lora write their own files; those of kohya's sd-scripts, ComfyUI and XLabs are written here by the
formulas in their sources. The changed weights are computed from the files by PyTorch in double precision, and compared with what the
tools themselves compute where they are right. Two runs write the same bytes. Needs: torch, diffusers, peft, transformers, lycoris-lora.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import lycoris
import lycoris.config
import numpy as np
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from lycoris import create_lycoris
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "fixtures/image_formats")
BASES, CASES = {}, []


def values(name, count):
    """Numbers between -1/2 and 1/2 with 24 bits, which follow from a name."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) % (1 << 64)
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(state)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5


def tensor(name, shape):
    return torch.tensor(values(name, math.prod(shape))).reshape(shape)


def weights(base):
    return {name: tensor(name, shape) for name, shape in BASES[base]["tensors"].items()}


def add_base(name, model, config):
    shapes = {key: list(value.shape) for key, value in model.items()} if isinstance(model, dict) else None
    BASES[name] = {"config": config, "tensors": shapes}


def probes(changed):
    flat = changed.double().flatten().numpy()
    return [float((flat * p).sum()) for p in (1.0, values("first probe", len(flat)), values("second probe", len(flat)))]


def add_case(name, file, base, changed, **more):
    changed = {key: probes(value) for key, value in sorted(changed.items())}
    CASES.append({"name": name, "file": file, "base": base, "changed": changed, **more})


# Base models.


def unet(kind):
    common = dict(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6)
    common |= dict(attention_head_dim=2)
    if kind == "sd15_wide":
        # candle's blocks always have 32 groups.
        common |= dict(block_out_channels=(32, 32), norm_num_groups=32)
    if kind.startswith("sd15"):
        return UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **common,
        )
    return UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=8,
        use_linear_projection=True,
        **common,
    )


def flux():
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=6,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


def flux_fused():
    """FLUX under the names of its own program."""

    def linear(name, outputs, inputs):
        return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}

    shapes = linear("img_in", 8, 4) | linear("txt_in", 8, 6) | linear("final_layer.linear", 4, 8)
    shapes |= linear("final_layer.adaLN_modulation.1", 16, 8)
    for name, inputs in (("time_in", 256), ("vector_in", 8), ("guidance_in", 256)):
        shapes |= linear(f"{name}.in_layer", 8, inputs) | linear(f"{name}.out_layer", 8, 8)
    for stream in ("img", "txt"):
        start = f"double_blocks.0.{stream}"
        shapes |= linear(f"{start}_mod.lin", 48, 8) | linear(f"{start}_attn.qkv", 24, 8) | linear(f"{start}_attn.proj", 8, 8)
        shapes |= {f"{start}_attn.norm.{name}_norm.scale": [8] for name in ("query", "key")}
        shapes |= linear(f"{start}_mlp.0", 32, 8) | linear(f"{start}_mlp.2", 8, 32)
    for block in range(2):
        start = f"single_blocks.{block}"
        shapes |= linear(f"{start}.linear1", 56, 8) | linear(f"{start}.linear2", 8, 40) | linear(f"{start}.modulation.lin", 24, 8)
        shapes |= {f"{start}.norm.{name}_norm.scale": [8] for name in ("query", "key")}
    return shapes


def flux_state(own):
    """The same weights under diffusers' names."""
    outer = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
    for name, embedder in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        outer |= {f"{name}.in_layer": f"time_text_embed.{embedder}_embedder.linear_1"}
        outer |= {f"{name}.out_layer": f"time_text_embed.{embedder}_embedder.linear_2"}
    blocks = ["transformer_blocks.0"]
    double, single = "double_blocks.0", ("single_blocks.0", "single_blocks.1")
    for stream, suffix, ff, out in (("img", "", "ff", "to_out.0"), ("txt", "_context", "ff_context", "to_add_out")):
        outer |= {f"{double}.{stream}_mod.lin": f"{blocks[0]}.norm1{suffix}.linear", f"{double}.{stream}_attn.proj": f"{blocks[0]}.attn.{out}"}
        outer |= {f"{double}.{stream}_mlp.0": f"{blocks[0]}.{ff}.net.0.proj", f"{double}.{stream}_mlp.2": f"{blocks[0]}.{ff}.net.2"}
    for name in single:
        theirs = f"single_transformer_blocks.{name[-1]}"
        outer |= {f"{name}.linear2": f"{theirs}.proj_out", f"{name}.modulation.lin": f"{theirs}.norm.linear"}
    state = {}
    for name, theirs in outer.items():
        state |= {f"{theirs}.{part}": own[f"{name}.{part}"] for part in ("weight", "bias")}
    fused = {f"{double}.img_attn.qkv": [f"{blocks[0]}.attn.to_{p}" for p in "qkv"]}
    fused |= {f"{double}.txt_attn.qkv": [f"{blocks[0]}.attn.add_{p}_proj" for p in "qkv"]}
    for name in single:
        theirs = f"single_transformer_blocks.{name[-1]}"
        fused[f"{name}.linear1"] = [f"{theirs}.attn.to_{p}" for p in "qkv"] + [f"{theirs}.proj_mlp"]
    for name, parts in fused.items():
        for part in ("weight", "bias"):
            state |= {f"{module}.{part}": value for module, value in zip(parts, own[f"{name}.{part}"].split([8, 8, 8, 32][: len(parts)]))}
    for part in ("weight", "bias"):
        shift, scale = own[f"final_layer.adaLN_modulation.1.{part}"].chunk(2)
        state[f"norm_out.linear.{part}"] = torch.cat([scale, shift])
    for name, norm in (("query", "q"), ("key", "k")):
        state[f"{blocks[0]}.attn.norm_{norm}.weight"] = own[f"{double}.img_attn.norm.{name}_norm.scale"]
        state[f"{blocks[0]}.attn.norm_added_{norm}.weight"] = own[f"{double}.txt_attn.norm.{name}_norm.scale"]
        for block in single:
            state[f"single_transformer_blocks.{block[-1]}.attn.norm_{norm}.weight"] = own[f"{block}.norm.{name}_norm.scale"]
    return state


def text_encoder(hidden, projection):
    shapes = {}
    for layer in range(2):
        start = f"text_model.encoder.layers.{layer}"
        for projected in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{start}.self_attn.{projected}.weight": [hidden, hidden], f"{start}.self_attn.{projected}.bias": [hidden]}
        shapes |= {f"{start}.mlp.fc1.weight": [2 * hidden, hidden], f"{start}.mlp.fc2.weight": [hidden, 2 * hidden]}
    if projection:
        shapes["text_projection.weight"] = [hidden, hidden]
    return shapes


def add_bases():
    for kind in ("sd15", "sd15_wide", "sdxl"):
        add_base(kind, unet(kind).state_dict(), {"_class_name": "UNet2DConditionModel", "layers_per_block": 1})
    add_base("flux", flux().state_dict(), {"_class_name": "FluxTransformer2DModel"})
    for name, shapes, config in [
        ("flux_fused", flux_fused(), {}),
        ("text", text_encoder(8, False), {"architectures": ["CLIPTextModel"]}),
        ("text_2", text_encoder(10, True), {"architectures": ["CLIPTextModelWithProjection"]}),
    ]:
        BASES[name] = {"config": config, "tensors": shapes}


# What is added to weights, by the formulas of the programs that read such files.


def low_rank(sd, key, shape, down="lora_down.weight", up="lora_up.weight"):
    a, b = sd[f"{key}.{down}"].double(), sd[f"{key}.{up}"].double()
    rank = a.shape[0]
    alpha = sd[f"{key}.alpha"].double().item() if f"{key}.alpha" in sd else rank
    if f"{key}.lora_mid.weight" in sd:
        mid = sd[f"{key}.lora_mid.weight"].double()
        update = torch.einsum("m n k l, i m, n j -> i j k l", mid, b.flatten(1), a.flatten(1))
    else:
        update = b.flatten(1) @ a.flatten(1)
    return update.reshape(shape) * (alpha / rank)


def loha(sd, key, shape):
    part = lambda name: sd[f"{key}.{name}"].double()
    if f"{key}.hada_t1" in sd:
        product = lambda n: torch.einsum("i j k l, i p, j r -> p r k l", part(f"hada_t{n}"), part(f"hada_w{n}_a"), part(f"hada_w{n}_b"))
    else:
        product = lambda n: part(f"hada_w{n}_a") @ part(f"hada_w{n}_b")
    return (product(1) * product(2)).reshape(shape) * (part("alpha").item() / part("hada_w1_b").shape[0])


def lokr(sd, key, shape):
    part = lambda name: sd[f"{key}.{name}"].double()
    has = lambda name: f"{key}.{name}" in sd
    w1 = part("lokr_w1") if has("lokr_w1") else part("lokr_w1_a") @ part("lokr_w1_b")
    if has("lokr_w2"):
        w2 = part("lokr_w2")
    elif has("lokr_t2"):
        w2 = torch.einsum("i j k l, i p, j r -> p r k l", part("lokr_t2"), part("lokr_w2_a"), part("lokr_w2_b"))
    else:
        w2 = part("lokr_w2_a") @ part("lokr_w2_b")
    rank = part("lokr_w2_b").shape[0] if has("lokr_w2_b") else part("lokr_w1_b").shape[0] if has("lokr_w1_b") else None
    scale = 1.0 if rank is None else part("alpha").item() / rank
    if w2.dim() == 2 and len(shape) == 4:
        w2 = w2.reshape(w2.shape[0], -1, *shape[2:])
    w1 = w1.reshape(*w1.shape, *[1] * (w2.dim() - 2))
    return torch.kron(w1, w2).reshape(shape) * scale


def decomposed(merged, scale):
    """DoRA with lengths of either side."""
    if scale.shape[0] == merged.shape[0] and (merged.shape[0] != 1 or scale.dim() < 2 or scale.shape[1] == 1):
        return merged * (scale.double().reshape(-1, *[1] * (merged.dim() - 1)) / merged.flatten(1).norm(dim=1).reshape(-1, *[1] * (merged.dim() - 1)))
    norm = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (merged.dim() - 2))
    return merged * (scale.double() / norm)


def merged_module(sd, key, module, base):
    """The parameters of a module with what the file has under `key`."""
    weight, changed = base[f"{module}.weight"], {}
    shape = weight.shape
    ends = {name[len(key) + 1 :] for name in sd if name.startswith(f"{key}.")}
    if "lora_down.weight" in ends:
        new = weight + low_rank(sd, key, shape)
    elif "hada_w1_a" in ends:
        new = weight + loha(sd, key, shape)
    elif any(end.startswith("lokr_") for end in ends):
        new = weight + lokr(sd, key, shape)
    elif "diff" in ends:
        new = weight + sd[f"{key}.diff"].double()
    elif "w_norm" in ends:
        new = weight + sd[f"{key}.w_norm"].double()
    else:
        raise KeyError(key)
    if "dora_scale" in ends:
        new = decomposed(new, sd[f"{key}.dora_scale"])
    changed[f"{module}.weight"] = new
    for end in ("diff_b", "b_norm"):
        if end in ends:
            changed[f"{module}.bias"] = base[f"{module}.bias"] + sd[f"{key}.{end}"].double()
    return changed


def merged_file(sd, modules, base):
    changed = {}
    for key, module in modules.items():
        changed |= merged_module(sd, key, module, base)
    return changed


# Files of kohya's sd-scripts and ComfyUI.


def factors(key, weight, rank, alpha=None, dtype=torch.float32, mid=False):
    """Factors as sd-scripts names them; those of a convolution have its window in A, or in a core between them."""
    out, window = weight[0], weight[2:]
    inner = [1] * len(window) if mid else window
    sd = {
        f"{key}.lora_down.weight": tensor(f"{key} down", [rank, weight[1], *inner]).to(dtype),
        f"{key}.lora_up.weight": tensor(f"{key} up", [out, rank, *[1] * len(window)]).to(dtype),
    }
    if mid:
        sd[f"{key}.lora_mid.weight"] = tensor(f"{key} mid", [rank, rank, *window]).to(dtype)
    if alpha is not None:
        sd[f"{key}.alpha"] = torch.tensor(alpha).to(dtype)
    return sd


def kohya_case(name, base, modules, other=(), dtype=torch.float16, **more):
    """`modules`: name in the file, module, rank, alpha, and whether there is a core."""
    shapes, sd = BASES[base]["tensors"], {}
    for key, module, rank, alpha, *mid in modules:
        sd |= factors(key, shapes[f"{module}.weight"], rank, alpha, dtype, bool(mid))
    for key, weight, rank, alpha in other:
        sd |= factors(key, weight, rank, alpha, dtype)
    save_file(sd, FOLDER / f"{name}.safetensors", metadata={"ss_network_module": "networks.lora"})
    names = {key: module for key, module, *_ in modules}
    add_case(name, f"{name}.safetensors", base, merged_file(sd, names, weights(base)), format="kohya", **more)


def add_kohya():
    block = "down_blocks.0.attentions.0"
    kohya_case(
        "kohya_sd15",
        "sd15",
        [
            (f"lora_unet_{block}_transformer_blocks_0_attn1_to_q".replace(".", "_"), f"{block}.transformer_blocks.0.attn1.to_q", 4, 2.0),
            (f"lora_unet_{block}_transformer_blocks_0_attn2_to_k".replace(".", "_"), f"{block}.transformer_blocks.0.attn2.to_k", 2, 4.0),
            (f"lora_unet_{block}_transformer_blocks_0_attn1_to_out_0".replace(".", "_"), f"{block}.transformer_blocks.0.attn1.to_out.0", 4, None),
            (f"lora_unet_{block}_transformer_blocks_0_ff_net_0_proj".replace(".", "_"), f"{block}.transformer_blocks.0.ff.net.0.proj", 1, 0.5),
            (f"lora_unet_{block}_proj_in".replace(".", "_"), f"{block}.proj_in", 4, 2.0),
            ("lora_unet_down_blocks_0_resnets_0_conv1", "down_blocks.0.resnets.0.conv1", 2, 1.0),
            ("lora_unet_mid_block_resnets_0_conv2", "mid_block.resnets.0.conv2", 3, 2.0, True),
        ],
        other=[("lora_te_text_model_encoder_layers_0_self_attn_q_proj", [8, 8], 2, 1.0)],
        left_out=3,
    )
    kohya_case(
        "kohya_sdxl",
        "sdxl",
        [
            ("lora_unet_input_blocks_0_0", "conv_in", 2, 1.0),
            ("lora_unet_input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1", 2, 1.0),
            ("lora_unet_input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj", 2, 1.0),
            ("lora_unet_input_blocks_2_0_op", "down_blocks.0.downsamplers.0.conv", 2, 1.0),
            ("lora_unet_input_blocks_3_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut", 2, 1.0),
            ("lora_unet_input_blocks_3_1_proj_in", "down_blocks.1.attentions.0.proj_in", 2, 1.0),
            ("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 2, 1.0),
            ("lora_unet_middle_block_2_out_layers_3", "mid_block.resnets.1.conv2", 2, 1.0),
            ("lora_unet_output_blocks_1_1_transformer_blocks_0_ff_net_2", "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2", 2, 1.0),
            ("lora_unet_output_blocks_1_2_conv", "up_blocks.0.upsamplers.0.conv", 2, 1.0),
            ("lora_unet_output_blocks_3_0_in_layers_2", "up_blocks.1.resnets.1.conv1", 2, 1.0),
            ("lora_unet_label_emb_0_2", "add_embedding.linear_2", 2, 1.0),
            ("lora_unet_time_embed_0", "time_embedding.linear_1", 2, 1.0),
            ("lora_unet_out_2", "conv_out", 2, 1.0),
        ],
    )
    layer = "text_model.encoder.layers.1"
    for number, base in ((1, "text"), (2, "text_2")):
        key = f"lora_te{number}_{layer}".replace(".", "_")
        other = "lora_te{}_{}_mlp_fc1".format(3 - number, layer.replace(".", "_"))
        size = 10 if number == 1 else 8
        kohya_case(
            f"kohya_te{number}",
            base,
            [(f"{key}_self_attn_out_proj", f"{layer}.self_attn.out_proj", 2, 1.0), (f"{key}_mlp_fc2", f"{layer}.mlp.fc2", 2, 3.0)],
            other=[(other, [2 * size, size], 2, 1.0), ("lora_unet_mid_block_resnets_0_conv1", [4, 4, 3, 3], 1, 1.0)],
            dtype=torch.bfloat16,
            left_out=6,
        )


# FLUX, whose own program fuses layers.

DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.1"
FUSED = {
    "double_blocks.0.img_attn.qkv": [f"{DOUBLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")],
    "double_blocks.0.txt_attn.qkv": [f"{DOUBLE}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")],
    "single_blocks.1.linear1": [f"{SINGLE}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
}
SAME = {
    "double_blocks.0.img_attn.proj": f"{DOUBLE}.attn.to_out.0",
    "double_blocks.0.txt_mlp.0": f"{DOUBLE}.ff_context.net.0.proj",
    "double_blocks.0.img_mod.lin": f"{DOUBLE}.norm1.linear",
    "single_blocks.1.linear2": f"{SINGLE}.proj_out",
    "single_blocks.1.modulation.lin": f"{SINGLE}.norm.linear",
    "final_layer.linear": "proj_out",
    "img_in": "x_embedder",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
}


def spread(update, modules, base):
    """A fused update on the modules that diffusers has for it."""
    rows = [base[f"{module}.weight"].shape[0] for module in modules]
    parts = update.split(rows)
    return {f"{module}.weight": base[f"{module}.weight"] + part for module, part in zip(modules, parts)}


def add_flux():
    base = weights("flux")
    outputs = lambda modules: sum(base[f"{module}.weight"].shape[0] for module in modules)
    inputs = lambda modules: base[f"{modules[0]}.weight"].shape[1]
    fused_shape = {name: [outputs(modules), inputs(modules)] for name, modules in FUSED.items()}
    # sd-scripts, with one module trained with split_qkv: three ranks below each other, B in blocks, alpha as it was.
    sd, changed = {}, {}
    for name, modules in FUSED.items():
        key = "lora_unet_" + name.replace(".", "_")
        sd |= factors(key, fused_shape[name], 6 if "txt" in name else 2, 1.0)
        if "txt" in name:
            up = torch.zeros(24, 6)
            for part in range(3):
                up[8 * part : 8 * part + 8, 2 * part : 2 * part + 2] = sd[f"{key}.lora_up.weight"][8 * part : 8 * part + 8, :2]
            sd[f"{key}.lora_up.weight"] = up
        changed |= spread(low_rank(sd, key, fused_shape[name]), modules, base)
    for number, (name, module) in enumerate(SAME.items()):
        key = "lora_unet_" + name.replace(".", "_")
        sd |= factors(key, list(base[f"{module}.weight"].shape), 1 + number % 2, 1.0 + number)
        changed |= merged_module(sd, key, module, base)
    key = "lora_unet_final_layer_adaLN_modulation_1"
    sd |= factors(key, list(base["norm_out.linear.weight"].shape), 2, 1.0)
    shift, scale = low_rank(sd, key, base["norm_out.linear.weight"].shape).chunk(2)
    changed["norm_out.linear.weight"] = base["norm_out.linear.weight"] + torch.cat([scale, shift])
    save_file(sd, FOLDER / "kohya_flux.safetensors")
    add_case("kohya_flux", "kohya_flux.safetensors", "flux", changed, format="kohya")
    # ComfyUI: the same names with their dots.
    dotted, changed = {}, {}
    for name in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"):
        own = factors(f"diffusion_model.{name}", fused_shape[name], 2)
        changed |= spread(low_rank(own, f"diffusion_model.{name}", fused_shape[name]), FUSED[name], base)
        dotted |= {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for key, value in own.items()}
    save_file(dotted, FOLDER / "comfyui_flux.safetensors")
    add_case("comfyui_flux", "comfyui_flux.safetensors", "flux", changed, format="kohya")
    # The same file on a base model under FLUX's own names, of which the second block has no counterpart there.
    own = weights("flux_fused")
    sd, changed = {}, {}
    for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1"):
        key = "lora_unet_" + name.replace(".", "_")
        sd |= factors(key, list(own[f"{name}.weight"].shape), 2, 1.0)
        changed |= merged_module(sd, key, name, own)
    save_file(sd, FOLDER / "kohya_flux_fused.safetensors")
    add_case("kohya_flux_fused", "kohya_flux_fused.safetensors", "flux_fused", changed, format="kohya")
    # diffusers' names on FLUX's own: parts of fused weights, each with its scale.
    sd, changed = {}, {name: own[f"{name}.weight"].clone() for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")}
    for part, (module, rank) in enumerate([("to_q", 2), ("to_v", 3)]):
        key = f"transformer.transformer_blocks.0.attn.{module}"
        terms = factors(key, [8, 8], rank, 1.0 + part)
        first = 0 if module == "to_q" else 16
        changed["double_blocks.0.img_attn.qkv"][first : first + 8] += low_rank(terms, key, [8, 8])
        sd |= {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in terms.items()}
    key = "transformer.single_transformer_blocks.0.proj_mlp"
    terms = factors(key, [32, 8], 2)
    changed["single_blocks.0.linear1"][24:] += low_rank(terms, key, [32, 8])
    sd |= {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in terms.items()}
    key = "transformer.norm_out.linear"
    terms = factors(key, [16, 8], 2)
    scale, shift = low_rank(terms, key, [16, 8]).chunk(2)
    changed["final_layer.adaLN_modulation.1"] = own["final_layer.adaLN_modulation.1.weight"] + torch.cat([shift, scale])
    sd |= {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in terms.items()}
    save_file(sd, FOLDER / "diffusers_flux_fused.safetensors")
    changed = {f"{name}.weight": value for name, value in changed.items()}
    add_case("diffusers_flux_fused", "diffusers_flux_fused.safetensors", "flux_fused", changed, format="diffusers")
    # XLabs.
    sd, changed = {}, {}
    for name, modules, shape in [
        ("double_blocks.0.processor.qkv_lora1", FUSED["double_blocks.0.img_attn.qkv"], [24, 8]),
        ("double_blocks.0.processor.qkv_lora2", FUSED["double_blocks.0.txt_attn.qkv"], [24, 8]),
        ("double_blocks.0.processor.proj_lora2", [f"{DOUBLE}.attn.to_add_out"], [8, 8]),
        ("single_blocks.1.processor.qkv_lora", FUSED["single_blocks.1.linear1"][:3], [24, 8]),
        ("single_blocks.1.processor.proj_lora", [f"{SINGLE}.proj_out"], [8, 40]),
    ]:
        terms = factors(name, shape, 2)
        changed |= spread(low_rank(terms, name, shape), modules, base)
        sd |= {key.replace("lora_down", "down").replace("lora_up", "up"): value for key, value in terms.items()}
    save_file(sd, FOLDER / "xlabs_flux.safetensors")
    add_case("xlabs_flux", "xlabs_flux.safetensors", "flux", changed, format="xlabs")


# diffusers.


def with_values(model):
    return with_state(model, {name: tensor(name, list(value.shape)) for name, value in model.state_dict().items()})


def with_state(model, state):
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.5)
            elif "lora_" in name:
                parameter.copy_(tensor(name, list(parameter.shape)))


def merged_by_peft(model):
    """The weights that PEFT's layers have with their adapters merged."""
    changed = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            module.double()
            module.merge(safe_merge=True)
            changed[f"{name}.weight"] = module.base_layer.weight.detach().clone()
    return changed


def pattern_config(**more):
    config = dict(
        r=2,
        lora_alpha=3,
        target_modules=["to_q", "attn1.to_out.0", "conv1", "proj_in"],
        exclude_modules=r"(?!mid_block\.|down_blocks\.1\.).*",
        rank_pattern={"attn1.to_q": 3},
        alpha_pattern={"mid_block.resnets.0.conv1": 8},
    )
    return LoraConfig(**(config | more))


def diffusers_case(name, pipeline, base, model, config, component, file=None, **more):
    save_by_diffusers(name, pipeline, with_values(model), config, component, more.pop("metadata"))
    add_case(name, f"{name}.safetensors", base, merged_by_peft(model), format="diffusers", **more)


def save_by_diffusers(name, pipeline, model, config, component, metadata=True):
    model.add_adapter(config)
    randomise(model)
    layers = get_peft_model_state_dict(model)
    key = f"{component}_lora_adapter_metadata"
    metadata = {key: json.loads(json.dumps(config.to_dict(), default=sorted))} if metadata else {}
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_lora_weights(folder, **{f"{component}_lora_layers": layers}, **metadata, weight_name="adapter.safetensors")
        shutil.copy(Path(folder) / "adapter.safetensors", FOLDER / f"{name}.safetensors")


def add_diffusers():
    sdxl, flux_pipeline = StableDiffusionXLPipeline, FluxPipeline
    diffusers_case("diffusers_unet", sdxl, "sdxl", unet("sdxl"), pattern_config(), "unet", metadata=True)
    diffusers_case("diffusers_rslora", sdxl, "sdxl", unet("sdxl"), pattern_config(use_rslora=True), "unet", metadata=True)
    diffusers_case("diffusers_dora", sdxl, "sdxl", unet("sdxl"), pattern_config(use_dora=True), "unet", metadata=True)
    plain = pattern_config(lora_alpha=2, alpha_pattern={"attn1.to_q": 3})
    diffusers_case("diffusers_no_metadata", sdxl, "sdxl", unet("sdxl"), plain, "unet", metadata=False)
    targets = ["transformer_blocks.0.attn.to_q", "^proj_out", "norm_out.linear"]
    targets = r"transformer_blocks\.0\.attn\.to_q|proj_out|norm_out\.linear|single_transformer_blocks\.1\.proj_mlp"
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, rank_pattern={"^proj_out": 3}, alpha_pattern={"^proj_out": 7})
    diffusers_case("diffusers_flux", flux_pipeline, "flux", flux(), config, "transformer", metadata=True)
    # The spellings from before PEFT, two of them in one file, and next to them a text encoder.
    base, layer = weights("sd15"), "text_model.encoder.layers.0"
    attention = "down_blocks.0.attentions.0.transformer_blocks.0"
    sd, changed = {}, {}
    for key, module, shape in [
        (f"unet.{attention}.attn1.processor.to_q_lora", f"{attention}.attn1.to_q", [4, 4]),
        (f"unet.{attention}.attn2.processor.to_out_lora", f"{attention}.attn2.to_out.0", [4, 4]),
        (f"unet.{attention}.attn1.to_k.lora", f"{attention}.attn1.to_k", [4, 4]),
        (f"unet.{attention}.ff.net.2.lora", f"{attention}.ff.net.2", [4, 16]),
        ("unet.mid_block.resnets.0.conv1.lora", "mid_block.resnets.0.conv1", [8, 8, 3, 3]),
    ]:
        terms = factors(key, shape, 2)
        changed[f"{module}.weight"] = base[f"{module}.weight"] + low_rank(terms, key, shape)
        sd |= {name.replace("lora_down", "down").replace("lora_up", "up"): value for name, value in terms.items()}
    text = weights("text")
    changed_text = {}
    for key, module, shape in [
        (f"text_encoder.{layer}.self_attn.to_out_lora", f"{layer}.self_attn.out_proj", [8, 8]),
        (f"text_encoder.{layer}.self_attn.q_proj.lora_linear_layer", f"{layer}.self_attn.q_proj", [8, 8]),
        (f"text_encoder.{layer}.mlp.fc1.lora_linear_layer", f"{layer}.mlp.fc1", [16, 8]),
    ]:
        terms = factors(key, shape, 2)
        changed_text[f"{module}.weight"] = text[f"{module}.weight"] + low_rank(terms, key, shape)
        sd |= {name.replace("lora_down", "down").replace("lora_up", "up"): value for name, value in terms.items()}
    save_file(sd, FOLDER / "diffusers_old.safetensors")
    add_case("diffusers_old", "diffusers_old.safetensors", "sd15", changed, format="diffusers", left_out=6)
    add_case("diffusers_old_text", "diffusers_old.safetensors", "text", changed_text, format="diffusers", left_out=10)


# LyCORIS.

CHOSEN = [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
]


def lycoris_case(name, base="sdxl", prefix="lycoris", chosen=CHOSEN, tool_is_right=True, dtype=torch.float32, format="lycoris", **settings):
    model = with_values(unet(base))
    preset = dict(enable_conv=True, target_name=list(chosen), target_module=[], lora_prefix=prefix)
    preset |= dict(name_algo_map=settings.pop("algorithms", {}))
    lycoris.config.PRESET["chosen"] = preset
    network = create_lycoris(model, 1.0, preset="chosen", **settings)
    flat = {f"{prefix}_{module}".replace(".", "_"): module for module, _ in model.named_modules() if module}
    network.apply_to()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            scaled = tensor(f"{name} {key}", list(parameter.shape)).float()
            parameter.copy_(parameter * (1.25 + scaled / 4) if "dora_scale" in key else scaled)
    network.save_weights(str(FOLDER / f"{name}.safetensors"), dtype, {})
    sd = load_file(FOLDER / f"{name}.safetensors")
    modules = {key: flat[key] for key in sorted({key.split(".")[0] for key in sd})}
    assert set(modules.values()) == set(chosen), (name, modules)
    changed = merged_file(sd, modules, weights(base))
    if tool_is_right and dtype == torch.float32:
        for lora in network.loras:
            own, _ = lora.get_merged_weight()
            ours = changed[f"{flat[lora.lora_name]}.weight"]
            assert torch.allclose(own.double().reshape(ours.shape), ours, atol=1e-5), (name, lora.lora_name)
    add_case(name, f"{name}.safetensors", base, changed, format=format)


def add_lycoris():
    common = dict(linear_dim=2, linear_alpha=1.0)
    lycoris_case("lycoris_locon", algo="lora", conv_dim=3, conv_alpha=2.0, **common)
    lycoris_case("lycoris_locon_tucker", algo="lora", use_tucker=True, rs_lora=True, prefix="lora_unet", format="kohya", **common)
    lycoris_case("lycoris_locon_dora", algo="lora", dora_wd=True, **common)
    lycoris_case("lycoris_locon_dora_in", algo="lora", dora_wd=True, wd_on_output=False, **common)
    # `get_diff_weight` of these two divides alpha by the rank twice, `forward` once.
    lycoris_case("lycoris_loha", algo="loha", conv_dim=3, tool_is_right=False, **common)
    lycoris_case("lycoris_loha_tucker", algo="loha", use_tucker=True, tool_is_right=False, **common)
    lycoris_case("lycoris_loha_dora", algo="loha", dora_wd=True, tool_is_right=False, **common)
    lycoris_case("lycoris_lokr", algo="lokr", tool_is_right=False, factor=2, linear_dim=1, linear_alpha=3.0)
    lycoris_case("lycoris_lokr_both", algo="lokr", decompose_both=True, factor=4, tool_is_right=False, linear_dim=1, linear_alpha=0.5)
    lycoris_case("lycoris_lokr_tucker", algo="lokr", use_tucker=True, factor=2, tool_is_right=False, linear_dim=1, linear_alpha=0.5)
    lycoris_case("lycoris_lokr_whole", algo="lokr", factor=2, tool_is_right=False, linear_dim=100, linear_alpha=3.0)
    lycoris_case("lycoris_lokr_unbalanced", algo="lokr", unbalanced_factorization=True, factor=2, tool_is_right=False, linear_dim=1)
    lycoris_case("lycoris_lokr_dora", algo="lokr", dora_wd=True, factor=2, tool_is_right=False, linear_dim=1, linear_alpha=0.5)
    norms = [*CHOSEN[:3], "down_blocks.1.attentions.0.transformer_blocks.0.norm1", "conv_norm_out"]
    lycoris_case("lycoris_norms", algo="lora", chosen=norms, train_norm=True, **common)
    lycoris_case("lycoris_full", algo="full", chosen=CHOSEN, **common)
    mixed = {CHOSEN[0]: {"algo": "loha"}, CHOSEN[1]: {"algo": "full"}, CHOSEN[2]: {"algo": "lokr", "factor": 2}}
    lycoris_case("lycoris_mixed", algo="lora", algorithms=mixed, tool_is_right=False, **common)
    lycoris_case("lycoris_half", algo="loha", dtype=torch.float16, prefix="lora_unet", tool_is_right=False, **common)


def add_outputs():
    """What models of diffusers compute with adapters that diffusers wrote: candle's models have to compute the same."""
    outputs = {}
    inputs = lambda name, shape: tensor(f"input {name}", shape).float()
    model = with_values(unet("sd15_wide"))
    targets = ["to_q", "to_v", "conv_in", "proj_in", "time_emb_proj"]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, alpha_pattern={"to_v": 5})
    call = lambda: model(inputs("sample", [1, 4, 8, 8]), 7, inputs("states", [1, 3, 6])).sample.detach()
    outputs["unet_without"] = call()
    save_by_diffusers("outputs_unet", StableDiffusionXLPipeline, model, config, "unet")
    outputs["unet"] = call()
    model = with_state(flux(), flux_state(weights("flux_fused")))
    targets = ["to_q", "to_v", "add_k_proj", "proj_mlp", "norm_out.linear", "x_embedder", "ff.net.0.proj"]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, rank_pattern={"to_v": 3}, alpha_pattern={"proj_mlp": 5})
    call = lambda: model(
        hidden_states=inputs("img", [1, 4, 4]),
        encoder_hidden_states=inputs("txt", [1, 3, 6]),
        pooled_projections=inputs("vec", [1, 8]),
        timestep=torch.tensor([0.5]),
        img_ids=torch.tensor([[0.0, y, x] for y in range(2) for x in range(2)]),
        txt_ids=torch.zeros(3, 3),
        guidance=torch.tensor([3.5]),
    ).sample.detach()
    outputs["flux_without"] = call()
    save_by_diffusers("outputs_flux", FluxPipeline, model, config, "transformer")
    outputs["flux"] = call()
    save_file(outputs, FOLDER / "outputs.safetensors")


def wan():
    return WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=1, attention_head_dim=12, in_channels=2, out_channels=2, text_dim=6,
        freq_dim=8, ffn_dim=8, num_layers=1, rope_max_seq_len=8,
    )


def add_other_transformers():
    """A file of diffusers without metadata whose blocks have another name than those of UNets and FLUX."""
    add_base("wan", wan().state_dict(), {"_class_name": "WanTransformer3DModel"})
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q", "attn2.to_out.0", "ffn.net.0.proj"])
    diffusers_case("diffusers_wan", WanPipeline, "wan", wan(), config, "transformer", metadata=False)


def add_alphas():
    """Whole numbers as alpha, and 0: the update does nothing."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    base, sd = weights("sd15"), {}
    for name, alpha in (("to_q", 3), ("to_k", 0)):
        sd |= factors(f"{block}_{name}", [4, 4], 2, alpha)
        sd[f"{block}_{name}.alpha"] = torch.tensor(alpha)
    sd |= factors(f"{block}_to_v", [4, 4], 2, 0.0)
    save_file(sd, FOLDER / "kohya_alphas.safetensors")
    changed = merged_file(sd, {f"{block}_to_q": f"{module}.to_q"}, base)
    add_case("kohya_alphas", "kohya_alphas.safetensors", "sd15", changed, format="kohya")


def main():
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file in FOLDER.iterdir():
        file.unlink()
    add_bases()
    for add in (add_kohya, add_flux, add_diffusers, add_lycoris, add_outputs, add_other_transformers, add_alphas):
        add()
    (FOLDER / "bases.json").write_text(json.dumps(BASES, sort_keys=True, separators=(",", ":")) + "\n")
    (FOLDER / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case, sort_keys=True) for case in CASES) + "\n]\n")


if __name__ == "__main__":
    main()
