//! Small crates in which the rules have to find what is wrong.

use std::path::PathBuf;

use crate::source::Source;

fn source(files: &[(&str, &str)]) -> Source {
    Source::of(files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())))
}

/// The modules that the file of `module` uses.
fn targets(source: &Source, module: &str) -> Vec<String> {
    let mut targets: Vec<String> = source.uses(module).into_iter().map(|used| used.target).collect();
    targets.dedup();
    targets
}

#[test]
fn uses_are_found_wherever_a_path_appears() {
    let files = |text| {
        source(&[
            ("lib.rs", "mod a; mod b; pub use b::Thing;"),
            ("b/mod.rs", "pub mod inner; pub use inner::Thing;"),
            ("b/inner.rs", "pub struct Thing; pub fn make() {}"),
            ("a.rs", text),
        ])
    };
    let seen = [
        "use crate::Thing;",
        "use crate::{\n    b::{\n        Thing as Other,\n    },\n};",
        "use super::b::inner;",
        "fn f() { crate::b::inner::make(); }",
        "fn f(x: &dyn Fn(crate::b::Thing)) {}",
        "use crate::b; fn f() { b::inner::make() }",
        "use crate::b::*; fn f() { inner::make() }",
        "fn f() { println!(\"{}\", crate::b::Thing) }",
    ];
    for text in seen {
        assert!(targets(&files(text), "a").contains(&"b::inner".to_owned()), "{text}");
    }
    let not_there = [
        "// use crate::b::Thing;",
        "/// [`Thing`](crate::b::Thing)\nstruct A;",
        "const TEXT: &str = \"crate::b::Thing\";",
        "#[cfg(test)]\nmod tests { use crate::b::Thing; }",
        "#[cfg(test)]\nuse crate::b::Thing;",
        "use std::b::Thing;",
    ];
    for text in not_there {
        assert_eq!(targets(&files(text), "a"), [""; 0], "{text}");
    }
}

#[test]
fn cycles_of_files_and_of_folders_are_found() {
    let of_a_file_and_its_folder = source(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod part; pub struct Options; fn run() { part::compute() }"),
        ("a/part.rs", "use super::Options; pub fn compute() {}"),
    ]);
    assert_eq!(of_a_file_and_its_folder.cycles().len(), 1);
    let of_folders = source(&[
        ("lib.rs", "mod top;"),
        ("top/mod.rs", "mod a; mod b;"),
        ("top/a/mod.rs", "mod one; mod two;"),
        ("top/a/one.rs", "use crate::top::b::three::Three;"),
        ("top/a/two.rs", "pub struct Two;"),
        ("top/b/mod.rs", "pub mod three; mod four;"),
        ("top/b/three.rs", "pub struct Three;"),
        ("top/b/four.rs", "use crate::top::a::two::Two;"),
    ]);
    assert_eq!(of_folders.cycles().len(), 1);
    let a_list_of_contents = source(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod part; pub use part::compute; pub struct Options;"),
        ("a/part.rs", "use super::Options; pub fn compute() {}"),
    ]);
    assert_eq!(a_list_of_contents.cycles(), [] as [Vec<(String, String)>; 0]);
}
