//! Compile-time errors of the macros: their wording and their location.

/// The compiler version that the expected outputs are from.
const RUSTC: &str = "1.95";

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn errors_say_what_is_wrong_and_what_to_do() {
    let version = std::process::Command::new("rustc").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with(&format!("rustc {RUSTC}.")) {
        eprintln!("SKIPPED: the expected errors are those of rustc {RUSTC}, and this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/ui/*/*.rs");
}
