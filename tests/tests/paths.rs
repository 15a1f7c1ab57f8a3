//! Names and paths: what is written stays in its folder, whatever names and links say.

use std::path::Path;

use peft_runtime::prelude::*;
use peft_tests::attacks::build::{CONFIG, WEIGHTS};
use peft_tests::victim::{KnownVariants, Variant, Victim};

/// Names that an adapter cannot have.
fn bad_names() -> Vec<String> {
    let mut names: Vec<String> =
        ["", ".", "..", "../x", "..\\x", "/x", "a/b", "a\\b", "x/..", "C:", "a.b", "x\0", "x\n", "__base__"]
            .map(str::to_owned)
            .to_vec();
    names.push("x".repeat(129));
    names
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_name_that_is_a_path_is_refused_everywhere() {
    for bad in bad_names() {
        let mut model = Variant(0).model("good").unwrap();
        let state = model.adapter_state_dict("good").unwrap();
        let config = LoraConfig::new(2, 4.0).with_targets(["lin0", "lin1"]);
        let refusals = [
            model.inject_adapter(&config, &bad).err(),
            model.inject_adapter_from_state_dict(&state, &config, &bad).err(),
            model.rename_adapter("good", &bad).err(),
            model.add_weighted_adapter(&[("good", 1.0)], &bad, &CombineOptions::default()).err(),
        ];
        for (place, refusal) in refusals.into_iter().enumerate() {
            let text = refusal.unwrap_or_else(|| panic!("{bad:?} is accepted by call {place}")).chain();
            assert!(text.contains("is not an adapter name"), "{bad:?} in call {place}: {text}");
        }
        assert_eq!(model.adapter_names(), ["good"]);
    }
}

#[test]
fn loading_by_a_name_looks_nowhere_else() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    // There is an adapter where the name would lead.
    Variant(0).model("x").unwrap().save_pretrained(outer.path(), "x").unwrap();
    let mut model = Victim::new().unwrap();
    for bad in bad_names() {
        let error = model.load_adapter(&inner, &bad).unwrap_err().chain();
        assert!(error.contains("is not an adapter name"), "{bad:?}: {error}");
    }
    model.load_adapter(outer.path(), "x").unwrap();
}

#[test]
fn files_that_are_not_settings_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join(CONFIG);
    let error = || Victim::new().unwrap().load_adapter(folder.path(), "default").unwrap_err().chain();
    std::fs::create_dir(&config).unwrap();
    assert!(error().contains("it is not a file") && error().contains(CONFIG), "{}", error());
    std::fs::remove_dir(&config).unwrap();
    // A sparse file of a terabyte, which takes no space on the disk.
    std::fs::File::create(&config).unwrap().set_len(1 << 40).unwrap();
    assert!(error().contains("it has more than") && error().contains(CONFIG), "{}", error());
    #[cfg(unix)]
    {
        std::fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
        assert!(error().contains("it is not a file") && error().contains(CONFIG), "{}", error());
    }
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use peft_tests::training::{Method, Mlp, trainer};

    use super::*;

    #[test]
    fn a_folder_that_is_a_link_to_the_outside_is_not_written_to() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), folder.path().join("chat")).unwrap();
        let model = Variant(0).model("chat").unwrap();
        let error = model.save_pretrained(folder.path(), "chat").unwrap_err().chain();
        assert!(error.contains("leads out of its folder") && error.contains("chat"), "{error}");
        assert!(names_in(outside.path()).is_empty());

        let missing = folder.path().join("missing");
        symlink(outside.path().join("nowhere"), &missing).unwrap();
        let model = Variant(0).model("missing").unwrap();
        assert!(model.save_pretrained(folder.path(), "missing").is_err());
        assert!(names_in(outside.path()).is_empty());
    }

    #[test]
    fn a_link_within_the_folder_is_followed_and_the_folder_itself_may_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink(&real, folder.path().join("link")).unwrap();
        symlink(real.join("versions"), real.join("chat")).unwrap();
        std::fs::create_dir(real.join("versions")).unwrap();
        let model = Variant(1).model("chat").unwrap();
        model.save_pretrained(folder.path().join("link"), "chat").unwrap();
        let known = KnownVariants::new("chat").unwrap();
        assert_eq!(known.in_folder(&real).unwrap(), Some(Variant(1)));
    }

    #[test]
    fn files_that_are_links_are_replaced_and_what_they_lead_to_is_not() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in [CONFIG, WEIGHTS] {
            std::fs::write(outside.path().join(name), "precious").unwrap();
            symlink(outside.path().join(name), folder.path().join(name)).unwrap();
        }
        symlink(outside.path().join("README.md"), folder.path().join("README.md")).unwrap();
        let model = Variant(2).model("default").unwrap();
        model.save_pretrained(folder.path(), "default").unwrap();
        assert_eq!(names_in(outside.path()), [CONFIG, WEIGHTS], "the dangling link was followed");
        for name in [CONFIG, WEIGHTS] {
            assert_eq!(std::fs::read_to_string(outside.path().join(name)).unwrap(), "precious");
            assert!(!folder.path().join(name).is_symlink());
        }
        assert_eq!(
            KnownVariants::new("default").unwrap().in_folder(folder.path()).unwrap(),
            Some(Variant(2))
        );
    }

    #[test]
    fn removing_a_checkpoint_that_is_a_link_removes_only_the_link() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("precious"), "precious").unwrap();
        for link in ["step-0", ".step-9.old", ".step-x.tmp"] {
            symlink(outside.path(), folder.path().join(link)).unwrap();
        }
        let model = Mlp::adapted(Method::Lora).unwrap();
        let mut trainer = trainer(&model, Method::Lora, folder.path(), 1).unwrap();
        while trainer.steps() < 4 {
            let loss = model.loss(trainer.batches()).unwrap();
            trainer.step(&model, &loss).unwrap();
        }
        assert_eq!(names_in(folder.path()), ["step-3", "step-4"]);
        assert_eq!(names_in(outside.path()), ["precious"]);
    }
}
