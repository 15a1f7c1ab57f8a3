//! What a program prints if its `main` returns the library's errors.

use std::process::Command;

/// What the program writes on standard error, and that it fails.
fn standard_error(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_returned_error"))
        .args(arguments)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_main_that_returns_an_error_prints_a_sentence_for_each_fault() {
    let printed = standard_error(&["inject", "lin9", "embedd"]);
    let expected = "\
Error: cannot inject adapter `default`, 2 faults:
  - target `embedd` matches no module; did you mean `embed`?
  - target `lin9` matches no module; did you mean `lin0` or `lin1`?
";
    assert_eq!(printed, expected);
}

#[test]
fn a_main_that_returns_an_error_prints_the_sentences_of_all_its_sources() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("adapter_config.json");
    std::fs::write(&config, r#"{"peft_type": "LORA", "r": "four"}"#).unwrap();
    let printed = standard_error(&["load", folder.path().to_str().unwrap()]);
    let expected = format!(
        "Error: cannot use `{}`\n\nCaused by:\n    `r` = \"four\" cannot be read: invalid type: string \"four\"",
        config.display()
    );
    assert!(printed.starts_with(&expected), "{printed}");
}

#[test]
fn a_main_that_returns_an_error_with_one_source_prints_it_below_its_own_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("adapter_config.json");
    std::fs::write(&config, r#"{"peft_type": "LORA", "r": 0}"#).unwrap();
    let printed = standard_error(&["load", folder.path().to_str().unwrap()]);
    let expected = format!(
        "Error: cannot use `{}`\n\nCaused by:\n    invalid `r`: the rank is 0; it must be at least 1\n",
        config.display()
    );
    assert_eq!(printed, expected);
}
