//! The one-way order of the runtime's modules, as `docs/ARCHITECTURE.md` has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The modules of the table, each with its row.
fn rows() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let table = text.split("## Modules of `peft-runtime`").nth(1).unwrap().split("\n## ").next().unwrap();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    table.lines().filter_map(name).enumerate().map(|(row, name)| (name, row)).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// The modules that a file names by `crate::`, outside of comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut names = Vec::new();
    for line in code {
        for part in line.split("crate::").skip(1) {
            let list = part.strip_prefix('{').map_or(part, |list| list.split('}').next().unwrap_or(list));
            for name in list.split(',') {
                let name: String =
                    name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                names.push(name);
            }
        }
    }
    names
}

#[test]
fn every_file_imports_from_above_alone() {
    let rows = rows();
    assert!(rows.len() > 10, "the table was not found: {rows:?}");
    let source = root().join("peft-runtime/src");
    let mut wrong = Vec::new();
    for file in files(&source) {
        let relative = file.strip_prefix(&source).unwrap();
        let own = relative.iter().next().unwrap().to_string_lossy();
        let own = own.strip_suffix(".rs").unwrap_or(&own).to_owned();
        if own == "lib" {
            continue;
        }
        let Some(own_row) = rows.get(&own) else {
            wrong.push(format!("`{own}` is not in the table"));
            continue;
        };
        for name in imports(&std::fs::read_to_string(&file).unwrap()) {
            // Names of the crate root are re-exports; only lower-case ones are modules.
            let row = rows.get(&name).filter(|_| name != own);
            if row.is_some_and(|row| row >= own_row) {
                wrong.push(format!("{} imports from `{name}`, which is below it", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_of_the_table_exists() {
    for name in rows().keys() {
        let source = root().join("peft-runtime/src");
        let exists = source.join(name).is_dir() || source.join(format!("{name}.rs")).is_file();
        assert!(exists, "`{name}` is in the table and nowhere else");
    }
}

#[test]
fn unsafe_code_is_where_the_documents_say() {
    let source = root().join("peft-runtime/src");
    for file in files(&source) {
        let relative = file.strip_prefix(&source).unwrap().display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        let has_unsafe =
            text.lines().any(|line| line.contains("unsafe {") && !line.trim_start().starts_with("//"));
        let allowed = relative.starts_with("ops/cpu/") || relative == "store/file.rs";
        assert!(!has_unsafe || allowed, "{relative} has unsafe code");
    }
}
