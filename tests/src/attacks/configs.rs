//! Hostile `adapter_config.json` files.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::build::CONFIG;
use super::{Attack, Make};
use crate::victim::LONG_NAME;

/// The config with other values at some keys, each written as it stands.
fn with(config: &str, values: &[(&str, &str)]) -> Vec<u8> {
    let mut fields: BTreeMap<String, Value> = serde_json::from_str(config).unwrap_or_default();
    fields.retain(|key, _| !values.iter().any(|(replaced, _)| replaced == key));
    written(&fields, values)
}

/// The config with more entries, also for keys that it already has.
fn with_more(config: &str, values: &[(&str, &str)]) -> Vec<u8> {
    written(&serde_json::from_str(config).unwrap_or_default(), values)
}

fn written(fields: &BTreeMap<String, Value>, values: &[(&str, &str)]) -> Vec<u8> {
    let own = fields.iter().map(|(key, value)| format!("{}: {value}", json!(key)));
    let others = values.iter().map(|(key, value)| format!("{}: {value}", json!(key)));
    let entries: Vec<String> = own.chain(others).collect();
    format!("{{{}}}", entries.join(", ")).into_bytes()
}

/// The config with a pattern as its targets.
fn with_pattern(config: &str, pattern: &str) -> Vec<u8> {
    with(config, &[("target_modules", &json!(pattern).to_string())])
}

/// A pattern that backtracks without end on the long name.
const WITHOUT_END: &str = r"(?=(a+)+$)(a|aa)+b\1";

fn refused(name: &'static str, tries: &'static str, says: &'static str, make: fn(&str) -> Vec<u8>) -> Attack {
    Attack { name, tries, file: CONFIG, says: Some(says), make: Make::Config(make) }
}

fn harmless(name: &'static str, tries: &'static str, make: fn(&str) -> Vec<u8>) -> Attack {
    Attack { name, tries, file: CONFIG, says: None, make: Make::Config(make) }
}

pub(super) fn attacks() -> Vec<Attack> {
    [numbers(), patterns(), shapes_of_json(), methods()].into_iter().flatten().collect()
}

fn numbers() -> Vec<Attack> {
    vec![
        refused(
            "rank-2-to-the-31",
            "a rank that takes gigabytes",
            "invalid `r`: the rank is 2147483648",
            |config| with(config, &[("r", "2147483648")]),
        ),
        refused(
            "rank-2-to-the-64",
            "a rank that does not fit into a machine word",
            "invalid type",
            |config| with(config, &[("r", "18446744073709551616")]),
        ),
        refused("rank-negative", "a rank that turns into a huge one", "invalid value", |config| {
            with(config, &[("r", "-1")])
        }),
        refused("rank-nan", "NaN, as Python writes it", "expected value", |config| {
            with(config, &[("r", "NaN")])
        }),
        refused("alpha-infinite", "an infinite scaling", "expected value", |config| {
            with(config, &[("lora_alpha", "Infinity")])
        }),
        refused(
            "alpha-out-of-range",
            "a number that overflows to infinity",
            "number out of range",
            |config| with(config, &[("lora_alpha", "1e999")]),
        ),
        refused("dropout-negative", "a probability below 0", "invalid `lora_dropout`", |config| {
            with(config, &[("lora_dropout", "-0.5")])
        }),
        refused("pattern-rank-2-to-the-40", "a huge rank in a pattern", "invalid `rank_pattern`", |config| {
            with(config, &[("rank_pattern", r#"{"lin0": 1099511627776}"#)])
        }),
        refused(
            "token-out-of-range",
            "a row that the embedding does not have",
            "there is no token 4294967295",
            |config| with(config, &[("trainable_token_indices", r#"{"embed": [4294967295]}"#)]),
        ),
    ]
}

fn patterns() -> Vec<Attack> {
    vec![
        refused(
            "pattern-without-end",
            "backtracking that never ends",
            "cannot be matched against",
            |config| with_pattern(config, WITHOUT_END),
        ),
        refused(
            "rank-pattern-without-end",
            "the same in `rank_pattern`",
            "cannot be matched against",
            |config| {
                let pattern = json!({ WITHOUT_END: 4 }).to_string();
                with(
                    config,
                    &[("rank_pattern", &pattern), ("target_modules", &json!([LONG_NAME]).to_string())],
                )
            },
        ),
        refused(
            "pattern-that-stands-still",
            "a repetition of nothing, which never ends",
            "repeats too often",
            |config| with_pattern(config, r"(?:(?=a)){4000000000}"),
        ),
        refused(
            "pattern-that-multiplies",
            "nested repetitions, whose counts multiply",
            "repeats too often",
            |config| with_pattern(config, r"((((a{99}){99}){99}){99}){99}"),
        ),
        refused(
            "references-that-double",
            "references to references, whose sizes overflow",
            "refers to groups",
            |config| {
                let doubled: String = (1..80).map(|group| format!(r"(\{group}\{group})")).collect();
                with_pattern(config, &format!("(a){doubled}"))
            },
        ),
        refused("look-behind-that-multiplies", "an automaton of unlimited size", "look-behind", |config| {
            with_pattern(config, r"(?<=(?:\w{100}){10})x")
        }),
        refused("pattern-of-a-million-bytes", "a pattern that takes long to compile", "bytes", |config| {
            with_pattern(config, &"a|".repeat(500_000))
        }),
        refused("pattern-of-many-groups", "an automaton for each group", "groups and references", |config| {
            with_pattern(config, &r"(?=\w)".repeat(20_000))
        }),
        refused(
            "pattern-of-deep-groups",
            "groups that overflow the stack",
            "is not a regular expression",
            |config| with_pattern(config, &format!("{}a{}", "(".repeat(900), ")".repeat(900))),
        ),
    ]
}

fn shapes_of_json() -> Vec<Attack> {
    vec![
        refused("deep-nesting", "brackets that overflow the stack", "recursion limit", |config| {
            let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            with(config, &[("auto_mapping", &nested)])
        }),
        refused(
            "rank-twice",
            "two ranks, of which a reader could take either",
            "duplicate field `r`",
            |config| with_more(config, &[("r", "3")]),
        ),
        refused("targets-twice", "two lists of targets", "duplicate field `target_modules`", |config| {
            with_more(config, &[("target_modules", r#"["lin0"]"#)])
        }),
        refused("pattern-twice", "two ranks for one pattern", "is there twice", |config| {
            with(config, &[("rank_pattern", r#"{"lin0": 2, "lin0": 3}"#)])
        }),
        harmless("key-of-10-mb", "a key of 10 MB, which is kept like other unknown keys", |config| {
            with_more(config, &[(&"k".repeat(10_000_000), "1")])
        }),
        harmless("text-of-10-mb", "a base model with a name of 10 MB", |config| {
            with(config, &[("base_model_name_or_path", &json!("m".repeat(10_000_000)).to_string())])
        }),
        refused(
            "fifty-thousand-targets",
            "a search for the name nearest to each",
            "matches no module",
            |config| {
                let names: Vec<String> = (0..50_000).map(|i| format!("name{i}")).collect();
                with(config, &[("target_modules", &json!(names).to_string())])
            },
        ),
        refused("not-text", "bytes that are not UTF-8", "UTF-8", |_| vec![0xff; 64]),
        refused("empty-config", "nothing at all", "it is empty", |_| Vec::new()),
    ]
}

fn methods() -> Vec<Attack> {
    vec![
        refused("path-as-method", "a method that is a path", "is not supported", |config| {
            with(config, &[("peft_type", r#""../../../etc/passwd""#)])
        }),
        refused(
            "blocks-without-end",
            "one list of blocks repeated a hundred thousand times",
            "blocks, and at most",
            |config| {
                let ranges = vec!["[0, 2]"; 100_000].join(", ");
                with(config, &[("layer_replication", &format!("[{ranges}]"))])
            },
        ),
        refused("loftq-without-end", "iterations that take years", "invalid `loftq_config`", |config| {
            let loftq = r#"{"loftq_bits": 4, "loftq_iter": 1000000000000}"#;
            with(config, &[("init_lora_weights", r#""loftq""#), ("loftq_config", loftq)])
        }),
        refused("pissa-without-end", "iterations that take years", "invalid `init_lora_weights`", |config| {
            with(config, &[("init_lora_weights", r#""pissa_niter_1000000000000""#)])
        }),
        refused("schedule-out-of-range", "steps whose sum overflows", "invalid `tinit`", |_| {
            let schedule = r#""tinit": 18446744073709551615, "tfinal": 1, "total_step": 5"#;
            format!(r#"{{"peft_type": "ADALORA", "target_modules": ["lin0"], {schedule}}}"#).into_bytes()
        }),
        refused(
            "adalora-rank-2-to-the-40",
            "a list of ranks that takes a terabyte",
            "invalid `init_r`",
            |_| {
                let ranks = r#""init_r": 1099511627776, "target_r": 1, "total_step": 5"#;
                format!(r#"{{"peft_type": "ADALORA", "target_modules": ["lin0"], {ranks}}}"#).into_bytes()
            },
        ),
    ]
}
