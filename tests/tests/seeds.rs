//! Every test computes with the same numbers in every run: none draws from a generator without a seed.
//!
//! Only the moments at which `kill_save` and `kill_resume` kill processes differ from run to run.

use std::path::{Path, PathBuf};

/// Calls that draw from candle's generator, whose seed on the CPU differs from run to run, or that reseed a generator.
/// A `VarMap` draws the weights of a model that is built on it.
const UNSEEDED: [&str; 12] = [
    "::randn(",
    "::rand(",
    "rand_like(",
    "randn_like(",
    "::rand_f64(",
    "::randn_f64(",
    "VarMap::new(",
    "VarBuilder::from_varmap(",
    "rand::rng(",
    "thread_rng(",
    "from_os_rng(",
    "from_entropy(",
];

/// The folders with tests, and with code that they call.
const SEARCHED: [&str; 3] = ["tests", "peft-runtime", "peft-macros"];

/// Benches compute with any numbers, and tutorials are programs as users write them.
const OTHERS: [&str; 2] = ["peft-runtime/benches", "tests/tutorials"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The lines of a text that draw without a seed, outside comments.
fn unseeded(text: &str) -> Vec<(usize, &str)> {
    let code = (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter(|(_, line)| UNSEEDED.iter().any(|call| line.contains(call))).collect()
}

#[test]
fn no_test_draws_from_an_unseeded_generator() {
    let root = root();
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in SEARCHED.iter().flat_map(|folder| files(&root.join(folder))) {
        let relative = file.strip_prefix(&root).unwrap().to_owned();
        let is_excepted = OTHERS.iter().any(|folder| relative.starts_with(folder));
        if is_excepted || relative == Path::new("tests/tests/seeds.rs") {
            continue;
        }
        count += 1;
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = unseeded(&text).into_iter();
        wrong.extend(lines.map(|(number, line)| format!("{}:{number}: {}", relative.display(), line.trim())));
    }
    assert!(count > 100, "only {count} files were found");
    assert!(wrong.is_empty(), "use `peft_tests::tensors::random`:\n{}", wrong.join("\n"));
}

#[test]
fn the_search_finds_calls_and_passes_over_comments() {
    let text = "let x = Tensor::randn(0f32, 1., 3, &device);\n/// Tensor::randn(0f32, 1., 3, &device)\nlet y = random(3);\n";
    assert_eq!(unseeded(text), [(1, "let x = Tensor::randn(0f32, 1., 3, &device);")]);
}
