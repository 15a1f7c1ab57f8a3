//! The keys of adapters' files, as other programs take them apart.

/// What PEFT's two wrapper levels put before every path.
pub const PREFIX: &str = "base_model.model.";

/// Prefixes of programs that wrapped the model while it was trained.
const WRAPPERS: [&str; 3] = [PREFIX, "_orig_mod.", "module."];

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    A,
    B,
    /// A bias of B.
    LoraBias,
    EmbeddingA,
    EmbeddingB,
    /// DoRA's lengths.
    Magnitude,
    /// A tensor of another method.
    Method,
    /// Rows of an embedding.
    Tokens,
    /// A weight of the base model under an adapter.
    BaseLayer,
    /// Any other parameter.
    Parameter,
    /// Nothing that PEFT writes.
    Stranger,
}

/// A key taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The path of the module.
    pub path: String,
    pub part: Part,
    /// `weight` or `bias`, where the tensor is a parameter.
    pub parameter: String,
    /// Whether the key begins with PEFT's prefix.
    pub has_prefix: bool,
    /// A wrapper's prefix in front of the path.
    pub wrapper: Option<&'static str>,
    /// The adapter's name in the key.
    pub adapter: Option<String>,
}

/// The marks of tensors, each with what it is.
const MARKS: [(&str, Part); 15] = [
    (".lora_A", Part::A),
    (".lora_B", Part::B),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_E", Part::Method),
    (".ranknum", Part::Method),
    (".lora_diag", Part::Method),
    (".lora_velora_embed", Part::Method),
    (".lora_monteclora_sampler", Part::Method),
    (".ia3_l", Part::Method),
    (".hada_", Part::Method),
    (".lokr_", Part::Method),
    (".trainable_tokens_delta", Part::Tokens),
    (".token_adapter.base_layer", Part::BaseLayer),
];

/// Names between a module and its parameter.
const INNER: [&str; 2] = ["original_module", "modules_to_save"];

impl Key {
    /// Takes a key apart.
    pub fn parse(key: &str) -> Self {
        let stripped = key.strip_prefix(PREFIX);
        let has_prefix = stripped.is_some();
        let mut rest = stripped.unwrap_or(key);
        let wrapper = WRAPPERS.into_iter().find(|wrapper| rest.starts_with(wrapper));
        while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
            rest = inner;
        }
        let key = |path: &str, part, parameter: &str, adapter: Option<&str>| Self {
            path: path.to_owned(),
            part,
            parameter: parameter.to_owned(),
            has_prefix,
            wrapper,
            adapter: adapter.map(str::to_owned),
        };
        // The mark that begins last: a module may be called `lora_head`.
        let marks = MARKS.iter().filter_map(|(mark, part)| Some((marked(rest, mark)?, *mark, *part)));
        if let Some((at, mark, part)) = marks.max_by_key(|(at, mark, _)| (*at, mark.len())) {
            let path = rest[..at].strip_suffix(".token_adapter").unwrap_or(&rest[..at]);
            let tail = rest[at + mark.len()..].trim_start_matches('.');
            return match (part, tail.rsplit_once('.').map_or((None, tail), |(name, end)| (Some(name), end))) {
                (Part::Method, _) => key(path, part, tail, None),
                (Part::B, (name, "bias")) => key(path, Part::LoraBias, "bias", name),
                (Part::A | Part::B | Part::Magnitude | Part::BaseLayer, (name, "weight")) => {
                    key(path, part, "weight", name)
                }
                (Part::BaseLayer, (name, "bias")) => key(path, part, "bias", name),
                (Part::BaseLayer, _) => key(rest, Part::Stranger, "", None),
                // AdaLoRA's factors are parameters without a name of their own.
                (_, (None, "")) => key(path, part, "", None),
                (_, (None, name)) => key(path, part, "", Some(name)),
                _ => key(rest, Part::Stranger, "", None),
            };
        }
        let Some((path, parameter)) =
            rest.rsplit_once('.').filter(|(_, name)| ["weight", "bias"].contains(name))
        else {
            return key(rest, Part::Stranger, "", None);
        };
        if let Some(path) = path.strip_suffix(".base_layer") {
            return key(path, Part::BaseLayer, parameter, None);
        }
        for inner in INNER {
            if let Some(path) = path.strip_suffix(inner).and_then(|path| path.strip_suffix('.')) {
                return key(path, Part::Parameter, parameter, None);
            }
            if let Some((path, name)) = path.split_once(&format!(".{inner}.")) {
                return key(path, Part::Parameter, parameter, Some(name));
            }
        }
        key(path, Part::Parameter, parameter, None)
    }

    /// The last segment of the path.
    pub fn module(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
}

/// Where `mark` begins in a key, as whole segments but for marks that end in `_`.
fn marked(key: &str, mark: &str) -> Option<usize> {
    let at = key.rfind(mark)?;
    let after = &key[at + mark.len()..];
    (mark.ends_with('_') || after.is_empty() || after.starts_with('.')).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::{Key, Part};

    #[test]
    fn keys_are_taken_apart_at_their_marks() {
        let parse = |key: &str| {
            let Key { path, part, parameter, adapter, .. } = Key::parse(key);
            (path, part, parameter, adapter)
        };
        let is = |key: &str, path: &str, part: Part, parameter: &str, adapter: Option<&str>| {
            assert_eq!(
                parse(key),
                (path.to_owned(), part, parameter.to_owned(), adapter.map(str::to_owned)),
                "{key}"
            );
        };
        is("base_model.model.a.q.lora_A.weight", "a.q", Part::A, "weight", None);
        is("base_model.model.a.q.lora_B.bias", "a.q", Part::LoraBias, "bias", None);
        is("a.q.lora_B.my-name.weight", "a.q", Part::B, "weight", Some("my-name"));
        is("e.lora_embedding_A", "e", Part::EmbeddingA, "", None);
        is("e.lora_embedding_B.default", "e", Part::EmbeddingB, "", Some("default"));
        is("net.lora_head.lora_A.weight", "net.lora_head", Part::A, "weight", None);
        is("net.lora_head.weight", "net.lora_head", Part::Parameter, "weight", None);
        is("q.lora_magnitude_vector", "q", Part::Magnitude, "", None);
        is("q.lora_magnitude_vector.weight", "q", Part::Magnitude, "weight", None);
        is("q.lora_A", "q", Part::A, "", None);
        is("q.lora_E", "q", Part::Method, "", None);
        is("q.ranknum", "q", Part::Method, "", None);
        is("q.lora_diag", "q", Part::Method, "", None);
        is("q.lora_monteclora_sampler.std_prior", "q", Part::Method, "std_prior", None);
        is("q.hada_w1_a", "q", Part::Method, "w1_a", None);
        is("e.token_adapter.trainable_tokens_delta", "e", Part::Tokens, "", None);
        is("e.token_adapter.base_layer.weight", "e", Part::BaseLayer, "weight", None);
        is("q.base_layer.bias", "q", Part::BaseLayer, "bias", None);
        is("lm_head.modules_to_save.default.weight", "lm_head", Part::Parameter, "weight", Some("default"));
        is("lm_head.original_module.weight", "lm_head", Part::Parameter, "weight", None);
        is("lm_head.weight", "lm_head", Part::Parameter, "weight", None);
        is("something", "something", Part::Stranger, "", None);
    }

    #[test]
    fn prefixes_are_told_apart() {
        let key = Key::parse("base_model.model.base_model.model.q.lora_A.weight");
        assert_eq!((key.path.as_str(), key.has_prefix, key.wrapper), ("q", true, Some("base_model.model.")));
        let key = Key::parse("base_model.model._orig_mod.q.lora_A.weight");
        assert_eq!((key.path.as_str(), key.wrapper), ("q", Some("_orig_mod.")));
        assert!(!Key::parse("q.lora_A.weight").has_prefix);
    }
}
