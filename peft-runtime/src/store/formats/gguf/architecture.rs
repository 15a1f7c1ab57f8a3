//! What llama.cpp calls the weights of a model, and what transformers calls them.

use serde_json::Value;

/// The models of one `model_type`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// transformers' name.
    model_type: &'static str,
    /// llama.cpp's name.
    pub(super) name: &'static str,
    /// Whether llama.cpp rotates neighbouring pairs of rows of queries and keys.
    rotates_pairs: bool,
    /// The modules of a block: transformers' names and llama.cpp's.
    block: &'static [Names],
}

/// What transformers and llama.cpp call a module.
type Names = (&'static str, &'static str);

/// Llama and the many that have its names.
const LLAMA: &[Names] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const MIXTRAL: &[Names] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.all_experts.gate_proj", "ffn_gate_exps"),
    ("block_sparse_moe.all_experts.up_proj", "ffn_up_exps"),
    ("block_sparse_moe.all_experts.down_proj", "ffn_down_exps"),
];

const QWEN_MOE: &[Names] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.all_experts.gate_proj", "ffn_gate_exps"),
    ("mlp.all_experts.up_proj", "ffn_up_exps"),
    ("mlp.all_experts.down_proj", "ffn_down_exps"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
];

const PHI: &[Names] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.dense", "attn_output"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
];

const PHI3: &[Names] = &[
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const STARCODER2: &[Names] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// What stands above for the module of all experts, whose layers are one weight in llama.cpp.
pub(super) const ALL_EXPERTS: &str = "all_experts";

/// The modules outside of blocks.
const OUTSIDE: [Names; 2] = [("model.embed_tokens", EMBEDDING), ("lm_head", HEAD)];

/// llama.cpp's name of the input embedding.
pub(super) const EMBEDDING: &str = "token_embd";

/// llama.cpp's name of the head.
pub(super) const HEAD: &str = "output";

/// Where transformers has the blocks.
const BLOCKS: &str = "model.layers.";

const fn of(
    model_type: &'static str,
    name: &'static str,
    rotates_pairs: bool,
    block: &'static [Names],
) -> Architecture {
    Architecture { model_type, name, rotates_pairs, block }
}

/// The architectures that are known; of several with one name in llama.cpp the usual one first.
const ARCHITECTURES: [Architecture; 20] = [
    of("llama", "llama", true, LLAMA),
    of("mistral", "llama", true, LLAMA),
    of("mixtral", "llama", true, MIXTRAL),
    of("granite", "granite", true, LLAMA),
    of("smollm3", "smollm3", true, LLAMA),
    of("qwen2", "qwen2", false, LLAMA),
    of("qwen3", "qwen3", false, LLAMA),
    of("qwen2_moe", "qwen2moe", false, QWEN_MOE),
    of("qwen3_moe", "qwen3moe", false, QWEN_MOE),
    of("gemma", "gemma", false, LLAMA),
    of("gemma2", "gemma2", false, LLAMA),
    of("gemma3", "gemma3", false, LLAMA),
    of("gemma3_text", "gemma3", false, LLAMA),
    of("phi", "phi2", false, PHI),
    of("phi3", "phi3", false, PHI3),
    of("starcoder2", "starcoder2", false, STARCODER2),
    of("stablelm", "stablelm", false, LLAMA),
    of("olmo2", "olmo2", false, LLAMA),
    of("cohere", "command-r", false, LLAMA),
    of("seed_oss", "seed_oss", false, LLAMA),
];

/// transformers' names of the architectures that are known.
pub(super) fn architecture_names() -> String {
    ARCHITECTURES.iter().map(|known| known.model_type).collect::<Vec<_>>().join(", ")
}

/// The number of heads whose rows llama.cpp has in another order; `None` if the order is that of transformers.
pub(super) type Heads = Option<usize>;

impl Architecture {
    /// The architecture that llama.cpp calls `name`.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|known| known.name == name)
    }

    /// transformers' path of the module whose weight llama.cpp calls `name`.
    pub(super) fn module(&self, name: &str) -> Option<String> {
        if let Some((module, _)) = OUTSIDE.iter().find(|(_, known)| *known == name) {
            return Some((*module).to_owned());
        }
        let (block, name) = name.strip_prefix("blk.")?.split_once('.')?;
        let block: usize = block.parse().ok()?;
        let (module, _) = self.block.iter().find(|(_, known)| *known == name)?;
        Some(format!("{BLOCKS}{block}.{module}"))
    }

    /// Whether the rows of the weight that llama.cpp calls `name` are in another order there.
    pub(super) fn reorders(&self, name: &str) -> bool {
        self.rotates_pairs && matches!(name.rsplit('.').next(), Some("attn_q" | "attn_k"))
    }
}

/// What a base model's `config.json` says about its architecture.
#[derive(Debug)]
pub(super) struct ModelConfig {
    pub(super) architecture: &'static Architecture,
    heads: usize,
    key_value_heads: usize,
}

impl ModelConfig {
    /// Reads a `config.json`, also that of a model that sees, which has one for its language model in it.
    ///
    /// # Errors
    /// The model type, if that is not known.
    pub(super) fn of(config: &Value) -> Result<Self, String> {
        let text = config.get("text_config").filter(|text| text.is_object());
        let model_type = |config: &Value| config.get("model_type").and_then(Value::as_str).map(str::to_owned);
        let types: Vec<String> = [Some(config), text].into_iter().flatten().filter_map(model_type).collect();
        let known = |model_type: &String| ARCHITECTURES.iter().find(|known| known.model_type == model_type);
        let Some(architecture) = types.iter().find_map(known) else {
            return Err(types.first().cloned().unwrap_or_default());
        };
        let number = |name: &str| {
            let number = config.get(name).or_else(|| text?.get(name))?.as_u64()?;
            usize::try_from(number).ok()
        };
        let heads = number("num_attention_heads").unwrap_or_default();
        let key_value_heads = number("num_key_value_heads").unwrap_or(heads);
        Ok(Self { architecture, heads, key_value_heads })
    }

    /// llama.cpp's name for the module at `path`, and the heads whose rows it reorders.
    pub(super) fn name_of(&self, path: &str) -> Option<(String, Heads)> {
        let mut path = path;
        while let Some(rest) =
            ["model.", "language_model."].iter().find_map(|wrapper| path.strip_prefix(wrapper))
        {
            path = rest;
        }
        let outside =
            OUTSIDE.iter().find(|(module, _)| module.strip_prefix("model.").unwrap_or(module) == path);
        if let Some((_, name)) = outside {
            return Some(((*name).to_owned(), None));
        }
        let (block, module) = path.strip_prefix("layers.")?.split_once('.')?;
        let block: usize = block.parse().ok()?;
        let (_, name) = self.architecture.block.iter().find(|(known, _)| *known == module)?;
        let name = format!("blk.{block}.{name}");
        let heads = self.heads_of(&name);
        Some((name, heads))
    }

    /// The heads whose rows llama.cpp has in another order in the weight that it calls `name`.
    pub(super) fn heads_of(&self, name: &str) -> Heads {
        let is_key = name.ends_with("attn_k");
        self.architecture.reorders(name).then_some(if is_key { self.key_value_heads } else { self.heads })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ARCHITECTURES, BLOCKS, ModelConfig, OUTSIDE};

    fn config(model_type: &str) -> ModelConfig {
        let config = json!({"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2});
        ModelConfig::of(&config).unwrap()
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        let name = |path: &str| config("llama").name_of(path).unwrap();
        assert_eq!(name("model.layers.11.self_attn.q_proj"), ("blk.11.attn_q".to_owned(), Some(4)));
        assert_eq!(name("layers.0.self_attn.k_proj"), ("blk.0.attn_k".to_owned(), Some(2)));
        assert_eq!(name("model.layers.2.mlp.down_proj"), ("blk.2.ffn_down".to_owned(), None));
        assert_eq!(name("lm_head"), ("output".to_owned(), None));
        assert_eq!(name("model.language_model.layers.0.mlp.up_proj"), ("blk.0.ffn_up".to_owned(), None));
        assert_eq!(config("qwen3").name_of("layers.0.self_attn.q_proj").unwrap().1, None);
        for wrong in ["model.norm", "model.layers.x.mlp.up_proj", "model.layers.0.self_attn.rotary"] {
            assert!(config("llama").name_of(wrong).is_none(), "{wrong}");
        }
        assert_eq!(ModelConfig::of(&json!({"model_type": "gpt2"})).unwrap_err(), "gpt2");
    }

    #[test]
    fn every_name_leads_back_to_its_module() {
        for known in &ARCHITECTURES {
            let blocks = known.block.iter().map(|(module, _)| format!("{BLOCKS}3.{module}"));
            for path in blocks.chain(OUTSIDE.iter().map(|(module, _)| (*module).to_owned())) {
                let (name, _) = config(known.model_type).name_of(&path).unwrap();
                assert_eq!(known.module(&name), Some(path), "{name}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_python_package() {
        let names = include_str!("../../../../../tests/fixtures/gguf_names.txt");
        let mut compared = 0;
        for line in names.lines().filter(|line| !line.starts_with('#')) {
            let [architecture, path, name] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            for known in ARCHITECTURES.iter().filter(|known| known.name == architecture) {
                let modules = known.block.iter().map(|(module, _)| format!("{BLOCKS}1.{module}"));
                if modules
                    .chain(OUTSIDE.iter().map(|(module, _)| (*module).to_owned()))
                    .any(|own| own == path)
                {
                    assert_eq!(
                        config(known.model_type).name_of(path).unwrap().0,
                        name,
                        "{architecture} {path}"
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared > 100, "{compared}");
    }
}
