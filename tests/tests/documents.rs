//! What the documents promise: the tests they name exist, the targets of their links exist, and their code compiles.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The text of a file of the repository.
fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in a folder of the repository.
fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The documents, by their paths in the repository.
fn documents() -> Vec<String> {
    let mut documents: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "tests/parity/README.md"]
            .map(str::to_owned)
            .into();
    let in_docs = names("docs").into_iter().filter(|name| name.ends_with(".md"));
    documents.extend(in_docs.map(|name| format!("docs/{name}")));
    documents
}

/// The text between back-ticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The text of a file with tests: in `tests/tests`, or in the sources of the runtime or the command line.
fn test_file(name: &str) -> Option<String> {
    let places =
        [format!("tests/tests/{name}"), format!("peft-runtime/src/{name}"), format!("peft-runtime/{name}")];
    places.iter().find_map(|place| std::fs::read_to_string(root().join(place)).ok())
}

/// What one part of a row's last column names but does not exist: `FILE: TEST, TEST` or `parity CASES`.
fn absent(part: &str, cases: &[String]) -> Vec<String> {
    let part = part.trim();
    if part.starts_with("round trip") {
        return Vec::new();
    }
    if let Some(groups) = part.strip_prefix("parity ") {
        let is_there = |group: &str| match group.strip_suffix('*') {
            Some(prefix) => cases.iter().any(|case| case.starts_with(prefix)),
            None => cases.iter().any(|case| case == group),
        };
        return code(groups).into_iter().filter(|group| !is_there(group)).map(str::to_owned).collect();
    }
    let Some((files, tests)) = part.split_once(": ") else { return vec![part.to_owned()] };
    let tests = tests.split(" (").next().unwrap_or(tests);
    let mut absent = Vec::new();
    for file in code(files) {
        let text = test_file(file).unwrap_or_default();
        let tests = code(tests).into_iter().filter(|test| !text.contains(&format!("fn {test}(")));
        absent.extend(tests.map(|test| format!("{file}: {test}")));
    }
    absent
}

#[test]
fn every_row_of_the_coverage_page_names_tests_that_exist() {
    let page = read("docs/coverage.md");
    let half = names("tests/parity/half").into_iter().map(|name| format!("half/{name}"));
    let cases: Vec<String> = names("tests/parity/cases").into_iter().chain(half).collect();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let rows: Vec<&str> = rows.filter(|line| !line.starts_with("| feature |")).collect();
    assert!(rows.len() > 40, "the tables were not found: {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let last = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap_or_default();
        wrong.extend(last.split(';').flat_map(|part| absent(part, &cases)));
    }
    assert!(wrong.is_empty(), "docs/coverage.md names what does not exist:\n{}", wrong.join("\n"));
}

#[test]
fn the_front_page_has_at_most_130_lines() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 130, "README.md has {lines} lines; details belong in docs/");
}

#[test]
fn the_package_shows_the_same_front_page() {
    assert!(read("README.md") == read("peft-runtime/README.md"), "copy README.md to peft-runtime/README.md");
}

/// The lines of a document that are not code.
fn prose(text: &str) -> Vec<&str> {
    let mut inside = false;
    let outside = |line: &&str| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !fence && !inside
    };
    text.lines().filter(outside).collect()
}

/// The names that headings have in links, as GitHub generates them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for heading in prose(text).into_iter().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors
}

/// The targets of a document's links, except those outside the repository.
fn links(text: &str) -> Vec<&str> {
    let lines = prose(text).into_iter();
    let targets = lines.flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_owned();
        for target in links(&text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let place = if path.is_empty() { root().join(&document) } else { folder.join(path) };
            let leads = match anchor {
                "" => place.exists(),
                anchor => std::fs::read_to_string(&place).is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !leads {
                wrong.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn the_code_of_every_document_is_compiled() {
    let library = read("peft-runtime/src/lib.rs");
    for document in documents().into_iter().filter(|document| document.starts_with("docs/")) {
        let text = read(&document);
        let has_code = text.lines().any(|line| line.starts_with("```rust"));
        assert!(!has_code || library.contains(&document), "`lib.rs` does not include `{document}`");
        let is_tutorial = TUTORIALS.iter().any(|(page, _)| *page == document);
        assert!(is_tutorial || shown_files(&text).is_empty(), "{document} has `rs` blocks and no package");
    }
}

/// The pages whose code blocks are the files of a package, each with the package.
const TUTORIALS: [(&str, &str); 2] =
    [("docs/tutorial.md", "tests/tutorials/finetune"), ("docs/your-own-model.md", "tests/tutorials/curves")];

/// The files that a page shows: blocks marked `rs`, each below a line with the file's name.
fn shown_files(page: &str) -> Vec<(&str, &str)> {
    let mut parts = page.split("```rs\n");
    let mut before = parts.next().unwrap_or_default();
    let mut files = Vec::new();
    for part in parts {
        let name = before.trim_end().lines().last().unwrap_or_default().trim_matches('`');
        let (block, after) = part.split_once("```\n").unwrap_or((part, ""));
        files.push((name, block));
        before = after;
    }
    files
}

#[test]
fn the_files_in_the_tutorials_are_those_of_their_packages() {
    for (page, package) in TUTORIALS {
        let text = read(page);
        let mut shown: Vec<String> = Vec::new();
        for (file, block) in shown_files(&text) {
            assert_eq!(
                block,
                read(format!("{package}/{file}")),
                "{page} shows a different `{file}` from {package}"
            );
            shown.push(file.to_owned());
        }
        shown.sort();
        let programs = names(&format!("{package}/src/bin")).into_iter();
        let mut there: Vec<String> = programs.map(|name| format!("src/bin/{name}")).collect();
        there.push("src/lib.rs".to_owned());
        assert_eq!(shown, there, "{page} does not show all files of {package}");
    }
}
