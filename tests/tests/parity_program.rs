//! The program `parity`: what it prints, and when it fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A case with few steps.
fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/cases/lora_mlp")
}

fn parity(folders: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_parity")).args(folders).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

/// A case in half precision.
fn half_case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/half/lora-mlp")
}

/// Copies the case into `folder`, with a change to the text of `case.json`.
fn copy_case(folder: &Path, change: impl FnOnce(String) -> String) {
    copy_folder(&case(), folder);
    change_file(&folder.join("case.json"), change);
}

/// Copies the case in half precision into `folder`, with a change to the text of one of its files.
fn copy_half_case(folder: &Path, file: &str, change: impl FnOnce(String) -> String) {
    copy_folder(&half_case(), folder);
    change_file(&folder.join(file), change);
}

fn change_file(path: &Path, change: impl FnOnce(String) -> String) {
    let text = change(std::fs::read_to_string(path).unwrap());
    std::fs::write(path, text).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).unwrap();
        }
    }
}

#[test]
fn a_case_that_passes_gets_a_line_with_its_largest_errors() {
    let output = parity(&[&case()]);
    assert!(output.status.success());
    let lines = lines(&output);
    let [line, last] = lines.as_slice() else { panic!("{lines:?}") };
    let words: Vec<&str> = line.split(' ').collect();
    let [ok, name, absolute, relative] = words.as_slice() else { panic!("{line}") };
    assert_eq!((*ok, *name), ("ok", "lora_mlp"));
    for (word, prefix) in [(absolute, "max_abs="), (relative, "max_rel=")] {
        let error: f64 = word.strip_prefix(prefix).unwrap().parse().unwrap();
        assert!(error.is_finite() && error >= 0.0, "{line}");
    }
    assert_eq!(last, "1 passed, 0 failed");
}

#[test]
fn a_case_that_differs_fails_with_its_step_and_the_others_are_still_replayed() {
    let folder = tempfile::tempdir().unwrap();
    copy_case(&folder.path().join("a_strict"), |text| {
        let end = text.rfind('}').unwrap();
        format!("{}, \"tolerance\": {{\"atol\": 0.0, \"rtol\": 0.0}}}}", &text[..end])
    });
    copy_case(&folder.path().join("b_unknown"), |text| text.replacen("\"forward\"", "\"backward\"", 1));
    copy_case(&folder.path().join("c_whole"), |text| text);
    let output = parity(&[folder.path()]);
    assert!(!output.status.success());
    let lines = lines(&output);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("FAIL lora_mlp step="), "{}", lines[0]);
    assert!(lines[0].contains(" op=") && lines[0].contains("expected"), "{}", lines[0]);
    assert!(lines[1].starts_with("FAIL b_unknown step=0 op=open: case.json:"), "{}", lines[1]);
    assert!(lines[1].contains("`backward`"), "{}", lines[1]);
    assert!(lines[2].starts_with("ok lora_mlp "), "{}", lines[2]);
    assert_eq!(lines[3], "1 passed, 2 failed");
}

#[test]
fn a_case_in_half_precision_gets_a_line_with_its_share_of_what_rounding_may_cost() {
    let output = parity(&[&half_case()]);
    assert!(output.status.success());
    let lines = lines(&output);
    let share: f64 = lines[0].strip_prefix("ok lora-mlp share=").unwrap().parse().unwrap();
    assert!(share > 0.1 && share <= 1.0, "{share}");
    assert_eq!(lines[1], "1 passed, 0 failed");
}

#[test]
fn a_case_in_half_precision_fails_if_an_error_is_over_its_limit_or_a_file_is_not_as_the_format_says() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let smaller = |what: &'static str| {
        move |text: String| {
            let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
            value.as_object_mut().unwrap().values_mut().for_each(|tolerance| tolerance[what] = 1e-3.into());
            value.to_string()
        }
    };
    copy_half_case(&place("a_rms"), "tolerances.json", smaller("rms"));
    copy_half_case(&place("b_max"), "tolerances.json", smaller("max"));
    copy_half_case(&place("c_unit"), "tolerances.json", smaller("unit"));
    copy_half_case(&place("d_names"), "tolerances.json", |_| "{}".to_owned());
    copy_half_case(&place("e_dtype"), "case.json", |text| text.replace("\"bf16\"", "\"f64\""));
    copy_half_case(&place("f_kept"), "case.json", |text| {
        text.replace("\"autocast_adapter_dtype\": true", "\"autocast_adapter_dtype\": false")
    });
    let lines = lines(&parity(&[folder.path()]));
    for (line, (op, reason)) in lines.iter().zip([
        (" op=forward: ", "the root mean square error"),
        (" op=forward: ", "the largest error"),
        (" op=", "units together"),
        (" op=open: ", "is in only one of exact.safetensors and tolerances.json"),
        (" op=open: ", "unknown variant `f64`"),
        (" op=", ""),
    ]) {
        assert!(line.starts_with("FAIL ") && line.contains(op) && line.contains(reason), "{line}");
    }
    assert_eq!(lines[6], "0 passed, 6 failed");
}

#[test]
fn a_folder_without_cases_and_a_missing_one_are_failures() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing")] {
        let output = parity(&[&path]);
        assert!(!output.status.success());
        let lines = lines(&output);
        assert!(lines[0].starts_with("FAIL ") && lines[0].contains(" step=0 op=open: "), "{lines:?}");
        assert_eq!(lines[1], "0 passed, 1 failed");
    }
    assert_eq!(parity(&[]).status.code(), Some(2), "without a folder it prints its usage");
}
