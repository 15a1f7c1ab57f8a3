//! Help, usage errors, and the form of error messages.

use crate::fixture::{error_of, output_of};

#[test]
fn every_command_has_help_and_reports_wrong_usage() {
    let all = output_of(&["--help"]);
    for command in ["inspect", "merge", "combine", "diff", "convert", "check"] {
        assert!(all.contains(command), "{all}");
        let help = output_of(&[command, "--help"]);
        assert!(help.contains("Usage: peft") && help.contains("--json"), "{help}");
    }
    assert!(error_of(&[], 2).contains("Usage"));
    assert!(error_of(&["inspect"], 2).contains("Usage"));
    assert!(error_of(&["melt"], 2).contains("melt"));
    assert!(error_of(&["combine", "a", "--type", "sum", "-o", "b"], 2).contains("dare_linear"));
}

#[test]
fn an_error_is_one_line_and_its_advice_another() {
    let error = error_of(&["inspect", "no/such/adapter"], 1);
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].contains("no/such/adapter/adapter_config.json"), "{error}");
    assert!(lines[1].starts_with("help: ") && lines[1].contains("adapter_model.safetensors"), "{error}");
}
