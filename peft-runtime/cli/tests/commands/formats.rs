//! Adapters of other programs, in every command.

use std::path::{Path, PathBuf};

use crate::fixture::{error_of, json_of, output_of, text};

/// A file or folder that the original tools wrote.
fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

#[test]
fn every_command_takes_an_adapter_of_another_program() {
    let (base, adapter) = (fixture("mlx/base"), fixture("mlx/lora"));
    let folder = tempfile::tempdir().unwrap();
    let shown = output_of(&["inspect", text(&adapter)]);
    assert!(shown.contains("mlx") && shown.contains("model.layers.1.self_attn.q_proj"), "{shown}");
    let peft = folder.path().join("peft");
    let converted =
        json_of(&["convert", text(&adapter), "--from", "auto", "--to", "peft", "-o", text(&peft)]);
    assert_eq!((&converted["from"], &converted["tensors"]), (&"mlx".into(), &6.into()));
    assert!(peft.join("adapter_model.safetensors").is_file() && peft.join("adapter_config.json").is_file());
    let compared = output_of(&["diff", text(&adapter), text(&peft)]);
    assert!(compared.contains("identical"), "{compared}");
    let both = folder.path().join("both");
    output_of(&[
        "combine",
        text(&adapter),
        text(&peft),
        "--type",
        "linear",
        "-o",
        text(&both),
        "--base",
        text(&base),
    ]);
    let [of_mlx, of_peft] = [(&adapter, "a"), (&peft, "b")].map(|(adapter, name)| {
        let merged = folder.path().join(name);
        output_of(&[
            "merge",
            "--base",
            text(&base),
            "--adapter",
            text(adapter),
            "-o",
            text(&merged),
            "--check",
        ]);
        std::fs::read(merged.join("model.safetensors")).unwrap()
    });
    assert!(of_mlx == of_peft);
    let error = error_of(
        &["convert", text(&adapter), "--from", "kohya", "--to", "peft", "-o", text(&both), "--force"],
        1,
    );
    assert!(error.contains("in the format `mlx`, not `kohya`"), "{error}");
}

#[test]
fn an_adapter_that_needs_its_base_model_is_merged_compared_and_checked_with_it() {
    let (base, adapter) = (fixture("mlx/base"), fixture("gguf_adapters/alpha.gguf"));
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let base = text(&base);
    let printed =
        output_of(&["merge", "--base", base, "--adapter", text(&adapter), "-o", text(&merged), "--check"]);
    assert!(printed.contains("was compared with base model and adapters"), "{printed}");
    let printed = output_of(&["check", text(&adapter), "--for", "llama.cpp", "--base", base]);
    assert!(printed.contains("yes"), "{printed}");
    // Under any name.
    let renamed = folder.path().join("adapter");
    std::fs::copy(&adapter, &renamed).unwrap();
    output_of(&["check", text(&renamed), "--for", "llama.cpp", "--base", base]);
    let (peft, fixed) = (folder.path().join("peft"), folder.path().join("fixed.gguf"));
    output_of(&["convert", text(&adapter), "--to", "peft", "-o", text(&peft), "--base", base]);
    output_of(&["check", text(&peft), "--for", "llama.cpp", "--fix", text(&fixed), "--base", base]);
    assert!(fixed.is_file());
}

#[test]
fn a_format_that_needs_the_base_model_says_so() {
    let adapter = fixture("gguf_adapters/alpha.gguf");
    for command in [&["inspect", text(&adapter)][..], &["diff", text(&adapter), text(&adapter)]] {
        let error = error_of(command, 1);
        assert!(error.contains("alpha.gguf") && error.contains("--base"), "{error}");
        output_of(&[command, &["--base", text(&fixture("mlx/base"))]].concat());
    }
}

#[test]
fn a_hostile_pickle_is_refused_by_name() {
    let error = error_of(&["inspect", text(&fixture("pickles/call_next_to_tensors.bin"))], 1);
    assert!(error.contains("call_next_to_tensors.bin") && error.contains("posix.system"), "{error}");
}
