//! How the weight of a linear layer lies in a base model's files: `[out, in]`, or `[in, out]` as `Conv1D` of transformers has it.
//!
//! `fan_in_fan_out` of an adapter's config is PEFT's value for the last layer that it adapted, so it says nothing about the
//! others. The shape of a weight decides unless it is square.

use std::ops::Range;

use super::model_facts::{ModelFacts, last_segment};
use crate::adapter::{AdapterMethod, Geometry, LayerShapes};

/// The layers that are `Conv1D`, by `model_type`: every use of `Conv1D(` in `transformers/models/*/modeling_*.py`, version 5.24.
const CONV1D: [(&str, &[&str]); 8] = [
    ("clvp", &["c_fc", "c_proj"]),
    ("clvp_decoder", &["c_fc", "c_proj"]),
    ("clvp_encoder", &[]),
    ("decision_transformer", &["c_attn", "c_fc", "c_proj", "q_attn"]),
    ("gpt-sw3", &["c_attn", "c_fc", "c_proj", "q_attn"]),
    ("gpt2", &["c_attn", "c_fc", "c_proj", "q_attn"]),
    ("imagegpt", &["c_attn", "c_fc", "c_proj", "q_attn"]),
    ("openai-gpt", &["c_attn", "c_fc", "c_proj"]),
];

/// Some types of models without such layers; for those not listed, the weights show whether they have any.
const STRAIGHT: [&str; 29] = [
    "bert",
    "bloom",
    "codegen",
    "cohere",
    "deepseek_v2",
    "deepseek_v3",
    "distilbert",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "roberta",
    "smollm3",
    "vit",
];

/// The geometry of a layer that has tensors of these shapes and a weight of the shape `weight`; `module` is its path in the base
/// model.
///
/// # Errors
/// Why it cannot be known how the weight lies.
pub(super) fn geometry(
    method: &dyn AdapterMethod,
    shapes: &LayerShapes,
    weight: &[usize],
    facts: ModelFacts<'_>,
    module: &str,
) -> Result<Option<Geometry>, String> {
    let of = |transposed| method.geometry(shapes, Some(weight), transposed);
    let (Some(straight), Some(transposed)) = (of(false), of(true)) else { return Ok(of(false)) };
    let fits = |geometry: &Geometry| geometry.weight_shape() == weight;
    let is_transposed = match (fits(&straight), fits(&transposed)) {
        (true, true) if straight != transposed => is_transposed(facts, module, method.is_transposed())?,
        (_, fits) => fits,
    };
    Ok(Some(if is_transposed { transposed } else { straight }))
}

/// Whether the fused weight of `module` lies as `[in, out]`, of which a layer with tensors of these shapes has the outputs `rows`.
///
/// # Errors
/// Why it cannot be known.
pub(super) fn is_fused_transposed(
    method: &dyn AdapterMethod,
    shapes: &LayerShapes,
    (weight, rows): (&[usize], &Range<usize>),
    facts: ModelFacts<'_>,
    module: &str,
) -> Result<bool, String> {
    let &[first, second] = weight else { return Ok(false) };
    let fits = |transposed: bool| {
        let (outputs, part) = match transposed {
            false => (first, [rows.len(), second]),
            true => (second, [first, rows.len()]),
        };
        let geometry = method.geometry(shapes, Some(&part), transposed);
        let lies = matches!(geometry, Some(Geometry::Linear { transposed: own, .. }) if own == transposed);
        rows.end <= outputs && lies && geometry.is_some_and(|geometry| geometry.weight_shape() == part)
    };
    match (fits(false), fits(true)) {
        (true, true) => is_transposed(facts, module, method.is_transposed()),
        (false, false) if rows.end > first => {
            let Range { start, end } = rows;
            Err(format!("outputs {start} to {end} of `{module}` are meant, and it has {first}"))
        }
        (_, fits) => Ok(fits),
    }
}

/// Whether the weight of `module` lies as `[in, out]`, where its shape does not say; `said` is the config's `fan_in_fan_out`.
///
/// # Errors
/// Why it cannot be known.
fn is_transposed(facts: ModelFacts<'_>, module: &str, said: bool) -> Result<bool, String> {
    if let Some(transposed) = seen(facts, module) {
        return Ok(transposed);
    }
    let (name, types) = (last_segment(module), facts.model_types());
    let of_type = |model_type: &&str| {
        let conv1d = CONV1D.iter().find(|(known, _)| known == model_type).map(|(_, names)| *names);
        conv1d.or_else(|| STRAIGHT.contains(model_type).then_some(&[][..]))
    };
    let known: Vec<&[&str]> = types.iter().filter_map(of_type).collect();
    if known.iter().any(|names| names.contains(&name)) {
        return Ok(true);
    }
    if !types.is_empty() && known.len() == types.len() {
        return Ok(false);
    }
    let others = Others::of(facts, name);
    match (said, others) {
        (false, Others::Straight) => Ok(false),
        (true, Others::SameName) => Ok(true),
        _ => Err(unknown(module, &types)),
    }
}

fn unknown(module: &str, types: &[&str]) -> String {
    let types = match types {
        [] => "there is no `config.json` with a `model_type` next to them".to_owned(),
        types => format!("`model_type` \"{}\" is not one whose layers are known", types.join("\", \"")),
    };
    format!(
        "the weight of `{module}` is square, so that it may lie as [out, in] or, as in Conv1D of GPT-2, as [in, out]. \
         `fan_in_fan_out` in an adapter's config is that of only one of its layers, and the base model's files do not say it: \
         {types}. Merge with a model (`merge_and_unload`), whose layers know it"
    )
}

/// How the weight of `module` lies, if its bias shows it.
fn seen(facts: ModelFacts<'_>, module: &str) -> Option<bool> {
    let &[rows, columns] = facts.shape(&format!("{module}.weight"))? else { return None };
    let &[outputs] = facts.shape(&format!("{module}.bias"))? else { return None };
    match (outputs == rows, outputs == columns) {
        (true, false) => Some(false),
        (false, true) => Some(true),
        _ => None,
    }
}

/// What the base model's other layers show.
enum Others {
    /// No weight lies as `[in, out]`: a `Conv1D` has a bias, whose length shows it.
    Straight,
    /// Those of the same name do, and none of that name lies as `[out, in]`.
    SameName,
    /// Nothing.
    Unknown,
}

impl Others {
    fn of(facts: ModelFacts<'_>, name: &str) -> Self {
        let keys = facts.shapes.into_iter().flat_map(|shapes| shapes.keys());
        let modules = keys.filter_map(|key| key.strip_suffix(".weight"));
        let seen: Vec<(&str, bool)> =
            modules.filter_map(|module| Some((last_segment(module), seen(facts, module)?))).collect();
        // Where no layer shows anything, names tell which modules are in doubt.
        let may_be = CONV1D.iter().any(|(_, names)| names.contains(&name));
        if seen.iter().all(|(_, transposed)| !transposed) {
            return if seen.is_empty() && may_be { Self::Unknown } else { Self::Straight };
        }
        let mut same = seen.iter().filter(|(other, _)| *other == name).peekable();
        if same.peek().is_some() && same.all(|(_, transposed)| *transposed) {
            Self::SameName
        } else {
            Self::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::is_transposed;
    use crate::store::model_facts::ModelFacts;

    fn decide(
        config: Option<&Value>,
        shapes: Option<&[(&str, &[usize])]>,
        said: bool,
    ) -> Result<bool, String> {
        let shapes: Option<BTreeMap<String, Vec<usize>>> = shapes
            .map(|shapes| shapes.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect());
        is_transposed(ModelFacts { config, shapes: shapes.as_ref() }, "h.0.attn.c_proj", said)
    }

    #[test]
    fn the_type_of_the_model_decides_whatever_the_adapters_config_says() {
        for said in [false, true] {
            assert_eq!(decide(Some(&json!({ "model_type": "gpt2" })), None, said), Ok(true));
            assert_eq!(decide(Some(&json!({ "model_type": "gpt_bigcode" })), None, said), Ok(false));
            let parts = json!({ "model_type": "vit", "decoder": { "model_type": "gpt2" } });
            assert_eq!(decide(Some(&parts), None, said), Ok(true));
        }
    }

    #[test]
    fn where_the_type_is_not_known_the_other_layers_may_show_it() {
        let square: (&str, &[usize]) = ("h.0.attn.c_proj.weight", &[8, 8]);
        let straight = [square, ("h.0.attn.c_attn.weight", &[24, 8]), ("h.0.attn.c_attn.bias", &[24])];
        assert_eq!(decide(None, Some(&straight), false), Ok(false));
        assert!(decide(None, Some(&straight), true).is_err());
        let transposed = [square, ("h.0.mlp.c_proj.weight", &[32, 8]), ("h.0.mlp.c_proj.bias", &[8])];
        assert_eq!(decide(None, Some(&transposed), true), Ok(true));
        let refused = decide(None, Some(&transposed), false).unwrap_err();
        assert!(refused.contains("h.0.attn.c_proj") && refused.contains("config.json"), "{refused}");
        let own = json!({ "model_type": "mine" });
        let refused = decide(Some(&own), Some(&transposed), false).unwrap_err();
        assert!(refused.contains("mine"), "{refused}");
        assert!(decide(None, None, false).is_err());
    }
}
