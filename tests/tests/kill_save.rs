//! A process is killed, or its save fails: the folder always holds either the complete old adapter or the complete new one.

#![cfg(unix)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use peft_runtime::prelude::*;
use peft_tests::moments::Moments;
use peft_tests::training::files;
use peft_tests::victim::{KnownVariants, Variant};

/// How often a process is killed: half of the time while saving the folder's own adapter, half while saving a named one.
const ROUNDS: usize = 200;

/// What a folder with one adapter holds, when nothing is left over.
const WHOLE: [&str; 3] = ["README.md", "adapter_config.json", "adapter_model.safetensors"];

/// A folder in memory if possible: every save waits for the disk several times.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let in_memory = if memory.is_dir() { tempfile::tempdir_in(memory).ok() } else { None };
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

fn victim(folder: &Path, name: &str, first: usize, count: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_save_victim"));
    command.arg(folder).arg(name).arg(first.to_string()).arg(count.to_string());
    command
}

/// A process that has begun to save.
fn begun(mut command: Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begin\n");
    child
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Saves once more and checks that nothing is left over from before.
fn check_clean(folder: &Path, name: &str) {
    Variant(1).model(name).unwrap().save_pretrained(folder, name).unwrap();
    assert_eq!(KnownVariants::new(name).unwrap().in_folder(folder).unwrap(), Some(Variant(1)));
    if name == "default" {
        assert_eq!(names_in(folder), WHOLE);
    } else {
        assert_eq!(names_in(folder), ["README.md", name]);
        assert_eq!(names_in(&folder.join(name)), WHOLE[1..]);
    }
}

#[test]
fn a_process_killed_while_it_saves_leaves_a_whole_adapter() {
    let mut moments = Moments::of_this_run();
    for name in ["default", "chat"] {
        let (folder, known) = (folder(), KnownVariants::new(name).unwrap());
        let folder = folder.path();
        Variant(0).model(name).unwrap().save_pretrained(folder, name).unwrap();
        let mut seen = BTreeSet::new();
        for round in 0..ROUNDS / 2 {
            let mut child = begun(victim(folder, name, round % Variant::COUNT, 0));
            std::thread::sleep(moments.below(Duration::from_millis(20)));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            let place = format!("seed {}, `{name}`, round {round}", moments.seed);
            assert!(status.code().is_none(), "{place}: the process ended by itself: {status}");
            match known.in_folder(folder) {
                Ok(Some(variant)) => seen.insert(variant.0),
                Ok(None) => panic!("{place}: the adapter is a mixture: {:?}", names_in(folder)),
                Err(error) => panic!("{place}: {}: {:?}", error.chain(), names_in(folder)),
            };
        }
        assert!(seen.len() > 1, "seed {}: no process got to save anything", moments.seed);
        check_clean(folder, name);
    }
}

#[test]
fn readers_see_whole_adapters_while_a_writer_changes_them() {
    let (folder, known) = (folder(), KnownVariants::new("default").unwrap());
    let folder = folder.path();
    Variant(0).model("default").unwrap().save_pretrained(folder, "default").unwrap();
    let mut writers = [0, 2].map(|first| begun(victim(folder, "default", first, 60)));
    let mut reads = 0;
    while writers.iter_mut().any(|writer| writer.try_wait().unwrap().is_none()) {
        match known.in_folder(folder) {
            Ok(Some(_)) => reads += 1,
            Ok(None) => panic!("after {reads} reads the adapter is a mixture"),
            Err(error) => panic!("after {reads} reads: {}", error.chain()),
        }
    }
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    // The last variant of one writer or the other: both go through all of them.
    assert!(known.in_folder(folder).unwrap().is_some());
    assert_eq!(names_in(folder), WHOLE);
    assert!(reads > 0);
}

#[test]
fn several_processes_saving_adapters_of_several_names_do_not_disturb_each_other() {
    let folder = folder();
    let folder = folder.path();
    let names = ["default", "chat", "code"];
    let writers = names.map(|name| begun(victim(folder, name, 0, 30)));
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    for name in names {
        // 30 saves from the first of four: the last is the second.
        let last = Variant(29 % Variant::COUNT);
        assert_eq!(KnownVariants::new(name).unwrap().in_folder(folder).unwrap(), Some(last), "{name}");
    }
    let expected: Vec<&str> =
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat", "code"].into();
    assert_eq!(names_in(folder), expected);
}

/// Checks a failed save: the status and words of an error, and every file unchanged.
fn check_refused(folder: &Path, before: &[(String, Vec<u8>)], output: &Output, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}: {text}", output.status);
    assert!(says.iter().any(|part| text.contains(part)), "{text}");
    let after = files(folder).unwrap();
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(before), names(&after), "{text}");
    assert!(before == after.as_slice(), "a file has changed: {text}");
}

#[test]
fn a_limit_on_the_size_of_files_leaves_the_old_adapter() {
    let folder = folder();
    Variant(0).model("default").unwrap().save_pretrained(folder.path(), "default").unwrap();
    let before = files(folder.path()).unwrap();
    // The shell sets a limit of half a kilobyte, and ignores the signal that would end the process.
    let program = env!("CARGO_BIN_EXE_save_victim");
    let script = format!("trap '' XFSZ; ulimit -f 1; exec '{program}' \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("sh").arg(folder.path()).args(["default", "3", "1"]);
    let output = command.output().unwrap();
    check_refused(folder.path(), &before, &output, &["File too large", "os error 27"]);
    check_clean(folder.path(), "default");
}

/// Mounts a small file system on `place`, which only the administrator may do.
fn mount_small(place: &Path) -> bool {
    let options = "size=64k,mode=0777";
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place).output();
    mounted.is_ok_and(|output| output.status.success())
}

/// Unmounts the file system, whatever the outcome of the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[expect(clippy::print_stderr, reason = "a test that is left out says why")]
fn leave_out(reason: &str) {
    eprintln!("left out: {reason}");
}

#[test]
fn a_full_disk_leaves_the_old_adapter() {
    let outer = tempfile::tempdir().unwrap();
    if !mount_small(outer.path()) {
        leave_out(
            "a small file system cannot be mounted here; the limit on the size of files is tried instead",
        );
        return;
    }
    let mounted = Mounted(outer.path().to_owned());
    let folder = mounted.0.join("adapter");
    Variant(0).model("default").unwrap().save_pretrained(&folder, "default").unwrap();
    let filler = mounted.0.join("filler");
    // All free space, down to the last page.
    let filled = std::fs::write(&filler, vec![0u8; 1 << 20]);
    assert!(filled.is_err(), "the file system is not full");
    let before = files(&folder).unwrap();
    let output = victim(&folder, "default", 3, 1).output().unwrap();
    check_refused(&folder, &before, &output, &["No space left on device", "os error 28"]);
    std::fs::remove_file(&filler).unwrap();
    check_clean(&folder, "default");
}

/// The administrator may write anywhere, so as administrator the test runs the process as another user.
const NOBODY: u32 = 65_534;

#[test]
fn a_folder_that_cannot_be_written_to_keeps_the_old_adapter() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("adapter");
    Variant(0).model("default").unwrap().save_pretrained(&folder, "default").unwrap();
    let before = files(&folder).unwrap();
    let allow = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    allow(outer.path(), 0o755);
    allow(&folder, 0o555);
    let mut command = victim(&folder, "default", 3, 1);
    let is_administrator = std::fs::metadata(outer.path()).unwrap().uid() == 0;
    if is_administrator {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.output() {
        Ok(output) => {
            check_refused(&folder, &before, &output, &["Permission denied", "Read-only file system"]);
        }
        Err(error) if is_administrator => leave_out(&format!("the program cannot be run by others: {error}")),
        Err(error) => panic!("{error}"),
    }
    allow(&folder, 0o755);
    check_clean(&folder, "default");
}
