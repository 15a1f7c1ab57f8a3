//! The structure of the sources, as `docs/ARCHITECTURE.md` describes it.

mod examples;
mod source;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;

use source::{Source, rust_files};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn runtime() -> Source {
    Source::read(&root().join("peft-runtime/src"))
}

/// The modules of the table, each with its row.
fn rows() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let table = text.split("## Modules of `peft-runtime`").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |line: &str| {
        let first = line.strip_prefix("| `")?.split(" |").next()?.to_owned();
        Some(first.split('`').step_by(2).map(str::to_owned).collect::<Vec<_>>())
    };
    let rows = table.lines().filter_map(names).enumerate();
    let rows: BTreeMap<String, usize> = rows
        .flat_map(|(row, names)| names.into_iter().map(move |name| (name, row)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    assert!(rows.len() > 10, "the table was not found: {rows:?}");
    rows
}

/// The row of the longest path in the table that is `module` or contains it.
fn row(rows: &BTreeMap<String, usize>, module: &str) -> Option<usize> {
    let mut path = module;
    loop {
        match rows.get(path) {
            Some(row) => return Some(*row),
            None => path = path.rsplit_once("::")?.0,
        }
    }
}

#[test]
fn a_file_imports_only_from_rows_above_its_own() {
    let (source, rows) = (runtime(), rows());
    let mut wrong = Vec::new();
    for (module, file) in source.files().filter(|(module, _)| !module.is_empty()) {
        let file = file.relative.display();
        let Some(own) = row(&rows, module) else {
            wrong.push(format!("{file}: `{module}` is not in the table"));
            continue;
        };
        for used in source.uses(module) {
            if row(&rows, &used.target).is_some_and(|row| row > own) {
                wrong.push(format!("{file} uses `{}` of `{}`, which is below it", used.written, used.target));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_import_from_the_module_that_defines_an_item_and_not_through_the_root() {
    let source = runtime();
    let mut wrong = Vec::new();
    for (module, file) in source.files().filter(|(module, _)| !module.is_empty()) {
        let imports = file.contents.imports.iter().map(|import| &import.path);
        for path in imports.chain(&file.contents.paths) {
            let through_root = match path[0].as_str() {
                "crate" => path.get(1).is_none_or(|name| !source.has_module(name) && name != "targets"),
                "super" => {
                    let climbs = path.iter().take_while(|name| *name == "super").count();
                    climbs > module.matches("::").count()
                }
                name => name == "peft_runtime",
            };
            if through_root {
                wrong.push(format!("{}: `{}`", file.relative.display(), path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_use_each_other_in_a_cycle() {
    let mut wrong = Vec::new();
    for folder in ["peft-runtime/src", "peft-macros/src", "peft-runtime/cli/src"] {
        for cycle in Source::read(&root().join(folder)).cycles() {
            let way: Vec<String> =
                cycle.iter().map(|(module, written)| format!("{module} ({written})")).collect();
            wrong.push(format!("{folder}: {} -> {}", way.join(" -> "), cycle[0].0));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Modules that may name a method, with the reason.
const NAME_METHODS: [(&str, &str); 5] = [
    ("", "the root re-exports the configs, and what methods add to training"),
    ("prelude", "it re-exports the configs"),
    ("model", "`declared_config` gives a `LoraConfig`, and `initialise_eva` is for LoRA only"),
    ("store::formats", "a reader of another program's files says which method they hold"),
    ("store::standalone::image_files", "kohya's names of modules begin like the keys of a method"),
];

/// What a key or `peft_type` of a method begins with, or is.
const METHOD_WORDS: [&str; 10] =
    ["lora_", "ia3_", "hada_", "lokr_", "token_adapter", "trainable_tokens", "LORA", "IA3", "LOHA", "LOKR"];

#[test]
fn nothing_outside_its_folder_names_a_method() {
    let source = runtime();
    let folders: Vec<String> = std::fs::read_dir(root().join("peft-runtime/src/method"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| format!("method::{}", path.file_name().unwrap().to_string_lossy()))
        .collect();
    assert!(folders.len() > 4, "the methods' folders were not found: {folders:?}");
    let is_of_a_method = |module: &str| {
        folders.iter().any(|folder| module == folder || module.starts_with(&format!("{folder}::")))
    };
    let is_in = |module: &str, known: &str| module == known || module.starts_with(&format!("{known}::"));
    let may = |module: &str| NAME_METHODS.iter().any(|(known, _)| is_in(module, known));
    let is_method = |module: &str| module == "method" || module.starts_with("method::");
    let mut wrong = Vec::new();
    for (module, file) in source.files().filter(|(module, _)| !is_method(module) && !may(module)) {
        let file_name = file.relative.display();
        for used in source.uses(module).into_iter().filter(|used| is_of_a_method(&used.target)) {
            wrong.push(format!("{file_name}: `{}`, which is in `{}`", used.written, used.target));
        }
        let literals = file.contents.literals.iter();
        for literal in literals.filter(|literal| METHOD_WORDS.iter().any(|word| literal.contains(word))) {
            wrong.push(format!("{file_name}: {literal}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_of_the_table_exists() {
    let source = runtime();
    for name in rows().keys() {
        assert!(source.has_module(name), "`{name}` is in the table and nowhere else");
    }
}

#[test]
fn unsafe_code_is_where_the_documents_say() {
    let source = root().join("peft-runtime/src");
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap().display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        let has_unsafe =
            text.lines().any(|line| line.contains("unsafe {") && !line.trim_start().starts_with("//"));
        let allowed = relative.starts_with("ops/cpu/") || relative == "store/file.rs";
        assert!(!has_unsafe || allowed, "{relative} has unsafe code");
    }
}
