//! Adapters of llama.cpp's; `tests/python/gguf_adapters.py` wrote them with the package `gguf`.

use peft_runtime::StoredAdapter;

use crate::merging::{assert_merged, base, merged};
use crate::{fixture, tensors};

fn adapter(name: &str) -> std::path::PathBuf {
    fixture(&format!("gguf_adapters/{name}.gguf"))
}

#[test]
fn adapters_merge_as_their_factors_say_in_the_order_of_transformers() {
    let base = fixture("mlx/base");
    for name in ["alpha", "alpha_of_zero", "no_alpha", "half", "only_v"] {
        let expected = tensors(fixture(&format!("gguf_adapters/{name}.safetensors")));
        assert_merged(name, &merged(&adapter(name), &base).unwrap(), &expected, &base);
    }
}

#[test]
fn alpha_is_divided_by_the_rank_of_each_layer_and_is_off_at_zero() {
    let scalings = |name: &str| -> Vec<(Option<usize>, Option<f64>)> {
        let adapter = StoredAdapter::open_for(adapter(name), &base(&fixture("mlx/base"))).unwrap();
        assert_eq!(adapter.format(), "gguf");
        adapter.layers().unwrap().iter().map(|layer| (layer.rank, layer.scaling)).collect()
    };
    assert!(scalings("alpha").iter().all(|(rank, scaling)| *scaling == rank.map(|rank| 5.0 / rank as f64)));
    for name in ["alpha_of_zero", "no_alpha"] {
        assert!(scalings(name).iter().all(|(_, scaling)| *scaling == Some(1.0)));
    }
}

#[test]
fn what_needs_the_number_of_heads_needs_the_base_model() {
    assert!(StoredAdapter::open(adapter("only_v")).is_ok());
    let error = StoredAdapter::open(adapter("alpha")).unwrap_err().chain();
    assert!(error.contains("open_for(path, &base)") && error.contains("--base"), "{error}");
}

#[test]
fn other_files_and_other_models_are_refused_in_words() {
    let base = base(&fixture("mlx/base"));
    for (name, says) in [
        ("of_qwen2", "it is for a `qwen2` of llama.cpp's, and the base model is a `llama`"),
        ("a_model", "`general.type` is `model`"),
        ("control_vector", "`adapter.type` is `controlvector`"),
        ("no_type", "`adapter.type` is missing"),
        ("unknown_weight", "`blk.1.attn_x.weight.lora_a`"),
        ("unknown_architecture", "`general.architecture` is `mamba`"),
        ("invocation", "only behind certain tokens"),
    ] {
        let error = StoredAdapter::open_for(adapter(name), &base).unwrap_err().chain();
        assert!(error.contains(&format!("{name}.gguf")) && error.contains(says), "{name}: {error}");
    }
}
