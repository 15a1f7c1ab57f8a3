//! The model card saved next to an adapter.

use std::fmt::Write as _;

use crate::config::CommonFields;

/// A `README.md` with the front matter that the hub reads.
pub(super) fn model_card(peft_type: &str, common: &CommonFields) -> String {
    let base_model = common.base_model_name_or_path.as_deref();
    let version = common.peft_version.as_deref();
    let task = common.task_type.as_deref();
    let mut card = String::from("---\n");
    if let Some(base) = base_model {
        let _ = writeln!(card, "base_model: {base}");
    }
    card.push_str("library_name: peft\n");
    if task == Some("CAUSAL_LM") {
        card.push_str("pipeline_tag: text-generation\n");
    }
    let mut tags: Vec<String> =
        base_model.map(|base| format!("base_model:adapter:{base}")).into_iter().collect();
    tags.push(peft_type.to_lowercase());
    tags.sort();
    card.push_str("tags:\n");
    for tag in tags {
        let _ = writeln!(card, "- {tag}");
    }
    card.push_str("---\n\n# Adapter\n\n");
    match base_model {
        Some(base) => {
            let _ = writeln!(card, "A {peft_type} adapter for `{base}`.");
        }
        None => {
            let _ = writeln!(card, "A {peft_type} adapter.");
        }
    }
    if let Some(version) = version {
        let _ = writeln!(card, "\n### Framework versions\n\n- PEFT {version}");
    }
    card
}

#[cfg(test)]
mod tests {
    use super::model_card;
    use crate::method::LoraConfig;

    #[test]
    fn the_front_matter_names_library_tags_and_base_model() {
        let config = LoraConfig::new(8, 8.0).with_base_model("org/base").with_task_type("CAUSAL_LM");
        let card = model_card("LORA", config.common());
        let front = "---\nbase_model: org/base\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n\
                     - base_model:adapter:org/base\n- lora\n---\n";
        assert!(card.starts_with(front), "{card}");
        assert!(card.ends_with("- PEFT 0.21.2\n"), "{card}");
    }
}
