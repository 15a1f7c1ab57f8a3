//! Values in an adapter's config that PEFT does not load.

use serde_json::Value;

use super::Search;
use crate::check::adapter_file::is_true;
use crate::check::feature::Feature;

/// The tasks that PEFT knows.
const TASKS: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];
/// Fields that hold a config of their own.
const CONFIGS: [&str; 7] = [
    "velora_config",
    "kasa_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "arrow_config",
    "use_bdlora",
];
/// Inits as PEFT compares them: these as they are written, the next in any case.
const INITS: [&str; 5] = ["pissa", "loftq", "eva", "orthogonal", "lora_ga"];
const INITS_IN_ANY_CASE: [&str; 3] = ["gaussian", "olora", "mica"];
const PATTERNS: [&str; 2] = ["rank_pattern", "alpha_pattern"];

impl Search<'_> {
    /// Fields with values that stop PEFT, method by method as it reads them.
    pub(super) fn fields(&mut self) {
        let method = self.found.iter().map(|found| found.feature).find(|feature| {
            matches!(feature, Feature::Lora | Feature::AdaLora | Feature::Loha | Feature::Lokr)
        });
        let is_lora = method == Some(Feature::Lora);
        let has_settings = is_lora || method == Some(Feature::AdaLora);
        let has_patterns = method.is_some_and(|method| method != Feature::AdaLora);
        let mut unusable: Vec<String> = Vec::new();
        unusable.extend(self.task());
        if has_patterns {
            self.patterns(&mut unusable);
        }
        if method.is_some() {
            self.numbers(has_patterns, if has_settings { "lora_alpha" } else { "alpha" });
            unusable.extend(self.lists());
        }
        if has_settings {
            let nulls = self.nulls(&["bias"]);
            self.add_fields(Feature::NullBias, &nulls);
            unusable.extend(self.bias().into_iter().chain(self.dropout()).chain(self.layers()));
            unusable.extend(self.configs());
        }
        if is_lora {
            unusable.extend(self.initial().into_iter().chain(self.variants_of_lora()));
        }
        self.add_fields(Feature::UnusableFields, &unusable);
    }

    fn add_fields(&mut self, feature: Feature, fields: &[String]) {
        if !fields.is_empty() {
            self.add(feature, fields.join("; "), Vec::new());
        }
    }

    fn nulls(&self, fields: &[&str]) -> Vec<String> {
        let is_null = |field: &&&str| self.adapter.config.get(**field).is_some_and(Value::is_null);
        fields.iter().filter(is_null).map(|field| format!("`{field}` is null")).collect()
    }

    fn patterns(&mut self, unusable: &mut Vec<String>) {
        let nulls = self.nulls(&PATTERNS);
        self.add_fields(Feature::NullPatterns, &nulls);
        for field in PATTERNS {
            let value = self.adapter.field(field);
            unusable.extend(value.filter(|value| !value.is_object()).map(|value| written(field, value)));
        }
    }

    fn numbers(&mut self, has_rank: bool, alpha: &str) {
        let config = &self.adapter.config;
        let is_count = |value: &Value| value.as_u64().is_some_and(|value| value > 0);
        let rank = config.get("r").filter(|value| has_rank && !is_count(value));
        let alpha_value = config.get(alpha).filter(|value| !value.is_number() && !value.is_boolean());
        let rank = rank.map(|value| written("r", value));
        let wrong: Vec<String> =
            rank.into_iter().chain(alpha_value.map(|value| written(alpha, value))).collect();
        self.add_fields(Feature::UnusableSizes, &wrong);
    }

    fn task(&self) -> Option<String> {
        let task = self.adapter.field("task_type")?;
        let is_known = task.as_str().is_some_and(|task| TASKS.contains(&task));
        (!is_known).then(|| written("task_type", task))
    }

    /// Fields that name modules or parameters, and hold neither names nor what counts as nothing.
    fn lists(&self) -> Vec<String> {
        let wrong = |field: &str, is_usable: fn(&Value) -> bool| {
            let value = self.adapter.field(field).filter(|value| !is_usable(value))?;
            Some(written(field, value))
        };
        let names = |value: &Value| value.is_array() || value.is_string();
        let optional = |value: &Value| value.is_array() || value.is_string() || !is_true(value);
        let list = |value: &Value| value.is_array() || !is_true(value) && !value.is_string();
        let fields = [
            wrong("target_modules", names),
            wrong("exclude_modules", optional),
            wrong("modules_to_save", optional),
            wrong("target_parameters", list),
        ];
        fields.into_iter().flatten().collect()
    }

    fn bias(&self) -> Option<String> {
        let bias = self.adapter.field("bias")?;
        let is_known =
            bias.as_str().is_some_and(|bias| ["none", "all"].contains(&bias) || bias.ends_with("_only"));
        (!is_known).then(|| written("bias", bias))
    }

    fn dropout(&self) -> Option<String> {
        let dropout = self.adapter.config.get("lora_dropout")?;
        let is_share = dropout.is_boolean() || dropout.as_f64().is_some_and(|share| share <= 1.0);
        (!is_share).then(|| written("lora_dropout", dropout))
    }

    fn layers(&self) -> Option<String> {
        let is_pattern = self.adapter.field("target_modules").is_some_and(Value::is_string);
        let numbers = self.adapter.field("layers_to_transform");
        let pattern = self.adapter.field("layers_pattern");
        match (numbers, pattern) {
            (Some(_), _) if is_pattern => {
                Some("`layers_to_transform` with a `target_modules` that is a pattern".to_owned())
            }
            (_, Some(_)) if is_pattern => {
                Some("`layers_pattern` with a `target_modules` that is a pattern".to_owned())
            }
            (None, Some(pattern)) if is_true(pattern) => {
                Some("`layers_pattern` without `layers_to_transform`".to_owned())
            }
            _ => None,
        }
    }

    /// Fields with a config of their own that hold something else, and what excludes each other.
    fn configs(&self) -> Vec<String> {
        let wrong = |field: &&str| {
            let value = self.adapter.field(field).filter(|value| !value.is_object())?;
            Some(written(field, value))
        };
        let mut all: Vec<String> = CONFIGS.iter().filter_map(wrong).collect();
        for field in ["monteclora_config", "megatron_config"] {
            let value = self.adapter.field(field).filter(|value| is_true(value) && !value.is_object());
            all.extend(value.map(|value| written(field, value)));
        }
        let starts_otherwise =
            self.adapter.config.get("init_lora_weights").is_some_and(|init| !init.is_boolean());
        for (field, is_on) in
            [("use_dora", self.adapter.is_on("use_dora")), ("init_lora_weights", starts_otherwise)]
        {
            if is_on && self.adapter.is_on("lora_bias") {
                all.push(format!("`lora_bias` with this `{field}`"));
            }
        }
        all
    }

    fn initial(&self) -> Option<String> {
        let init = self.adapter.field("init_lora_weights").filter(|init| is_true(init))?;
        let is_known = match init {
            Value::Bool(_) => true,
            Value::String(name) => {
                let lower = name.to_ascii_lowercase();
                let steps = name.strip_prefix("pissa_niter_").map(str::parse::<u32>);
                INITS.contains(&name.as_str())
                    || INITS_IN_ANY_CASE.contains(&lower.as_str())
                    || name.starts_with("corda")
                    || steps.is_some_and(|steps| steps.is_ok())
            }
            _ => false,
        };
        if is_known && *init == "loftq" && !self.is_filled("loftq_config") {
            return Some("`init_lora_weights` is \"loftq\" without `loftq_config`".to_owned());
        }
        (!is_known).then(|| written("init_lora_weights", init))
    }

    /// Settings of variants that no adapter by itself can have.
    fn variants_of_lora(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.adapter.field("arrow_config").is_some_and(Value::is_object) {
            all.push("`arrow_config`, which routes between other adapters and is not loaded".to_owned());
        }
        let blocks = self.adapter.field("use_bdlora").filter(|blocks| blocks.is_object());
        let Some(blocks) = blocks.filter(|blocks| blocks.get("match_strict").is_none_or(is_true)) else {
            return all;
        };
        let names = |field: &str| -> Vec<&str> {
            let names = blocks.get(field).and_then(Value::as_array).into_iter().flatten();
            names.filter_map(Value::as_str).collect()
        };
        let known = [names("target_modules_bd_a"), names("target_modules_bd_b")].concat();
        let paths = self.ranks().into_keys();
        let other = paths.into_iter().find(|path| !known.iter().any(|name| last_name(path).contains(name)));
        all.extend(other.map(|path| format!("`use_bdlora` that does not name `{path}`")));
        all
    }
}

fn written(field: &str, value: &Value) -> String {
    format!("`{field}` is {value}")
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}
