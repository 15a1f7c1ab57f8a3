//! Hostile files: no panic, no memory beyond the size of the files, and an error that names the file.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peft_runtime::Error;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_tests::attacks::build::{CONFIG, Gguf, WEIGHTS, sound_adapter};
use peft_tests::attacks::{Attack, RunFiles, all};
use peft_tests::memory::{self, CountingAllocator};
use peft_tests::training::{Method, Mlp, trainer};
use peft_tests::victim::Victim;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How much memory reading may take besides the size of the files: small models, tables, caches of threads.
const ALLOWED: usize = 64 << 20;
/// How many copies of a file may be in memory, in the forms it has while it is parsed.
const COPIES: usize = 24;
/// How long reading may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// All tests of this file share one count of memory.
fn lock_memory_count() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an attack, reads its files, and returns what is wrong with the outcome.
fn outcome(attack: &Attack) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let size = attack.write(folder.path()).unwrap();
    let (before, started) = (memory::start(), Instant::now());
    let read = catch_unwind(AssertUnwindSafe(|| attack.read(folder.path())));
    let (most, time) = (memory::most_since(before), started.elapsed());
    let text = match (read, attack.says) {
        (Err(_), _) => return Err("it panics".to_owned()),
        (Ok(Ok(())), None) => String::new(),
        (Ok(Ok(())), Some(_)) => return Err("it is accepted".to_owned()),
        (Ok(Err(error)), None) => return Err(format!("it is refused: {}", error.chain())),
        (Ok(Err(error)), Some(says)) => {
            let text = error.chain();
            if !text.contains(says) || !text.contains(attack.file) {
                let start: String = text.chars().take(2000).collect();
                return Err(format!("the error lacks `{says}` or `{}`: {start}", attack.file));
            }
            // If `RUST_BACKTRACE` is set, candle's errors include a backtrace.
            text.lines().take_while(|line| !line.starts_with("   0: ")).collect()
        }
    };
    if most > ALLOWED + COPIES * size {
        return Err(format!("it takes {most} bytes; the files have {size}"));
    }
    if text.len() > 10_000 && !text.contains("matches no module") {
        return Err(format!("its error has {} bytes", text.len()));
    }
    if time > PATIENCE {
        return Err(format!("it takes {time:?}"));
    }
    Ok(())
}

#[test]
fn every_attack_has_the_outcome_that_the_list_names() {
    let _lock = lock_memory_count();
    let mut wrong = String::new();
    for attack in all() {
        if let Err(what) = outcome(&attack) {
            let _ = writeln!(wrong, "`{}` ({}): {what}", attack.name, attack.tries);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_valid_files_that_attacks_are_made_from_are_accepted() {
    let _lock = lock_memory_count();
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = sound_adapter().unwrap();
    write_adapter(folder.path(), config.as_bytes(), &weights);
    Victim::new().unwrap().load_adapter(folder.path(), "default").unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Gguf::sound().bytes()).unwrap();
    let device = candle_core::Device::Cpu;
    let ids = candle_core::Tensor::new(&[[0u32, 2, 1]], &device).unwrap();
    for model in [LlamaModel::from_gguf(&path, &device), LlamaModel::from_gguf_quantized(&path, &device)] {
        assert_eq!(model.unwrap().forward(&ids, None).unwrap().dims(), [1, 3, 3]);
    }
    for method in [Method::Lora, Method::AdaLora] {
        let run = RunFiles::of_run(method).unwrap();
        assert_eq!(run.names().len(), if method == Method::Lora { 3 } else { 4 });
        resume(method, run).unwrap();
    }
}

fn write_adapter(folder: &Path, config: &[u8], weights: &[u8]) {
    std::fs::write(folder.join(CONFIG), config).unwrap();
    std::fs::write(folder.join(WEIGHTS), weights).unwrap();
}

/// Resumes a run from these files.
fn resume(method: Method, run: RunFiles) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in run.into_files() {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let model = Mlp::adapted(method)?;
    trainer(&model, method, folder.path(), 1)?.resume(&model).map(drop)
}

/// Whether reading fails with an error that names `file`, and without a panic.
fn is_refused(file: &str, read: impl FnOnce() -> Result<(), Error>) -> bool {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Err(error)) => error.chain().contains(file),
        Ok(Ok(())) | Err(_) => false,
    }
}

#[test]
fn an_adapter_cut_short_at_any_byte_is_refused() {
    let _lock = lock_memory_count();
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = sound_adapter().unwrap();
    let load = || Victim::new()?.load_adapter(folder.path(), "default").map(drop);
    for end in 0..weights.len() {
        write_adapter(folder.path(), config.as_bytes(), &weights[..end]);
        assert!(is_refused(WEIGHTS, load), "{end} of {} bytes of the weights", weights.len());
    }
    for end in 0..config.len() {
        write_adapter(folder.path(), &config.as_bytes()[..end], &weights);
        assert!(is_refused(CONFIG, load), "{end} of {} bytes of the config", config.len());
    }
}

#[test]
fn a_gguf_file_cut_short_at_any_byte_is_refused() {
    let _lock = lock_memory_count();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = Gguf::sound().bytes();
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let load = || LlamaModel::from_gguf(&path, &candle_core::Device::Cpu).map(drop);
        assert!(is_refused("model.gguf", load), "{end} of {} bytes", whole.len());
    }
}

#[test]
fn a_checkpoint_cut_short_anywhere_is_refused() {
    let _lock = lock_memory_count();
    for method in [Method::Lora, Method::AdaLora] {
        let sound = RunFiles::of_run(method).unwrap();
        for name in sound.names() {
            let whole = sound.bytes(&name);
            // A prime, so that the cuts fall anywhere. The last byte of the state ends its line.
            for end in (0..whole.len() - 1).step_by(97) {
                let mut run = sound.clone();
                run.damage(&name, whole[..end].to_vec());
                assert!(
                    is_refused(&name, || resume(method, run)),
                    "{end} of {} bytes of {name}",
                    whole.len()
                );
            }
        }
    }
}

#[test]
fn the_list_of_attacks_names_every_one() {
    let mut list = String::from(
        "# Hostile files\n\n\
         `tests/src/attacks` makes these files when a test needs them. `tests/tests/attacks.rs` reads each one and checks that\n\
         nothing panics, that memory stays within a multiple of the size of the files, and that the error names the file.\n\n\
         `cargo run -p peft-tests --bin attacks -- FOLDER` writes the files to a folder.\n\
         `BLESS=1 cargo test -p peft-tests --test attacks` writes this list again.\n\n\
         | name | pretends to be | tries | error |\n| --- | --- | --- | --- |\n",
    );
    for attack in all() {
        let said =
            attack.says.map_or_else(|| "none: it is accepted".to_owned(), |says| format!("… {says} …"));
        let said = said.replace('|', "\\|");
        let _ = writeln!(list, "| `{}` | {} | {} | {said} |", attack.name, attack.target(), attack.tries);
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("attacks/README.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &list).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == list, "attacks/README.md is not the list of attacks; BLESS=1 rewrites it");
    let mut names: Vec<&str> = all().iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all().len(), "two attacks have the same name");
}
