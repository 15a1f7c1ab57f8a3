//! Tensors that the config asks for and the file lacks, and tensors that the config does not ask for.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Search;
use crate::check::feature::Feature;
use crate::check::keys::{Key, Part};

/// The tensors of variants: the field that turns the variant on, and the mark of its keys.
const VARIANTS: [(&str, &str); 3] = [
    ("kasa_config", ".lora_diag"),
    ("velora_config", ".lora_velora_embed"),
    ("monteclora_config", ".lora_monteclora_sampler"),
];

impl Search<'_> {
    /// Whether the file has what the config asks for, and no more.
    pub(super) fn completeness(&mut self) {
        self.copies();
        self.selection();
        let has_settings = [Feature::Lora, Feature::AdaLora]
            .iter()
            .any(|method| self.found.iter().any(|found| found.feature == *method));
        if has_settings {
            self.tokens();
        }
        if self.is_lora() {
            self.parts();
            self.undeclared();
        }
    }

    fn saved(&self) -> Vec<String> {
        let values = self.adapter.field("modules_to_save").and_then(Value::as_array).into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    fn copies(&mut self) {
        let saved = self.saved();
        let is_plain =
            |name: &str| !name.contains(".modules_to_save.") && !name.contains(".original_module.");
        let plain: BTreeSet<(&str, &str)> = self
            .keys
            .iter()
            .filter(|(name, _)| is_plain(name))
            .map(|(_, key)| (key.path.as_str(), key.parameter.as_str()))
            .collect();
        let is_only = |(name, key): &&(String, Key)| {
            name.contains(".modules_to_save.")
                && !plain.contains(&(key.path.as_str(), key.parameter.as_str()))
        };
        let renamed: Vec<String> = self.keys.iter().filter(is_only).map(|(name, _)| name.clone()).collect();
        let has_some = |module: &String| self.keys.iter().any(|(_, key)| is_inside(&key.path, module));
        let is_missing = !saved.is_empty() && !saved.iter().any(has_some);
        let feature = if saved.is_empty() { Feature::Undeclared } else { Feature::RenamedCopies };
        let what = "full copies only under keys with `modules_to_save`";
        self.add_if(feature, what, renamed, false);
        if is_missing {
            let what = format!("no tensors of `modules_to_save`: {}", saved.join(", "));
            self.add(Feature::MissingCopies, what, Vec::new());
        }
    }

    fn tokens(&mut self) {
        let rows = self.tensors(|key| key.part == Part::Tokens);
        match self.adapter.field("trainable_token_indices") {
            None => self.add_if(Feature::Undeclared, "rows without `trainable_token_indices`", rows, false),
            Some(Value::Object(names)) if names.is_empty() => {}
            Some(_) if rows.is_empty() => {
                self.add(Feature::MissingTokens, "no rows of `trainable_token_indices`", Vec::new());
            }
            Some(_) => {}
        }
    }

    /// The paths with a factor of this sort.
    fn paths(&self, parts: &[Part]) -> BTreeSet<&str> {
        let has = self.keys.iter().filter(|(_, key)| parts.contains(&key.part));
        has.map(|(_, key)| key.path.as_str()).collect()
    }

    fn parts(&mut self) {
        let layers = self.paths(&[Part::A, Part::EmbeddingA]);
        let first = |paths: &BTreeSet<&str>| paths.iter().next().map(|path| (*path).to_owned());
        let mut missing: Vec<(&str, Option<String>)> = Vec::new();
        if self.adapter.is_on("use_dora") {
            missing.push(("use_dora", first(&(&layers - &self.paths(&[Part::Magnitude])))));
        }
        if self.adapter.is_on("lora_bias") {
            missing.push(("lora_bias", first(&(&layers - &self.paths(&[Part::LoraBias])))));
        }
        for (field, mark) in VARIANTS.iter().filter(|(field, _)| self.is_active(field)) {
            let marked = self.keys.iter().filter(|(name, _)| name.contains(mark));
            let marked: BTreeSet<&str> = marked.map(|(_, key)| key.path.as_str()).collect();
            missing.push((*field, first(&(&self.paths(&[Part::A]) - &marked))));
        }
        let missing = missing.into_iter().filter_map(|(field, path)| Some((field, path?)));
        let words: Vec<String> = missing
            .map(|(field, path)| format!("no tensors for `{field}` on all layers (`{path}` for example)"))
            .collect();
        for what in words {
            self.add(Feature::MissingParts, what, Vec::new());
        }
    }

    fn undeclared(&mut self) {
        if !self.adapter.is_on("use_dora") {
            let lengths = self.tensors(|key| key.part == Part::Magnitude);
            self.add_if(Feature::Undeclared, "DoRA's lengths without `use_dora`", lengths, false);
        }
        if !self.adapter.is_on("lora_bias") {
            let biases = self.tensors(|key| key.part == Part::LoraBias);
            self.add_if(Feature::Undeclared, "biases of B without `lora_bias`", biases, false);
        }
        for (field, mark) in VARIANTS {
            if !self.is_active(field) {
                let names = self.keys.iter().map(|(name, _)| name).filter(|name| name.contains(mark));
                let names = names.cloned().collect();
                self.add_if(Feature::Undeclared, &format!("tensors without `{field}`"), names, false);
            }
        }
    }

    /// What the config does not select of the adapter's own modules.
    fn selection(&mut self) {
        let judgement = &self.adapter.judgement;
        let has_rows = !self.is_filled("trainable_token_indices")
            || !self.tensors(|key| key.part == Part::Tokens).is_empty();
        if let Some(reason) = judgement.selects_nothing.as_ref().filter(|_| has_rows) {
            let what = format!("a config that selects none of the adapter's modules ({reason})");
            return self.add(Feature::NoTargets, what, Vec::new());
        }
        let unexpected: Vec<Key> = judgement.unexpected.iter().map(|key| Key::parse(key)).collect();
        let is_factor = |key: &Key| {
            matches!(key.part, Part::A | Part::B | Part::EmbeddingA | Part::EmbeddingB | Part::Method)
        };
        let is_variants = |name: &str| VARIANTS.iter().any(|(_, mark)| name.contains(mark));
        let is_left = |(name, key): &&(String, Key)| {
            is_factor(key)
                && !is_variants(name)
                && unexpected.iter().any(|other| (&other.path, other.part) == (&key.path, key.part))
        };
        let left: Vec<String> = self.keys.iter().filter(is_left).map(|(name, _)| name.clone()).collect();
        self.add_if(Feature::Untargeted, "modules that the config does not select", left, false);
    }
}

/// Whether a path is that of a module with this name, or inside one; PEFT compares the end of the path, letter by letter.
fn is_inside(path: &str, name: &str) -> bool {
    path.ends_with(name) || path.match_indices('.').any(|(at, _)| path[..at].ends_with(name))
}
