//! Readers that run a model while a writer changes its adapter: every output is that of one adapter or the other.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::Tensor;
use peft_runtime::prelude::*;
use peft_tests::tensors::bits;
use peft_tests::victim::{Variant, Victim};

/// How many threads read.
const READERS: usize = 4;
/// How often the writer changes the adapter.
const SWAPS: usize = 300;

/// A folder for each variant, and the output of a model with it.
struct Saved {
    folders: Vec<tempfile::TempDir>,
    outputs: Vec<Vec<u64>>,
}

fn saved(ids: &Tensor) -> Saved {
    let (mut folders, mut outputs) = (Vec::new(), Vec::new());
    for variant in Variant::all() {
        let folder = tempfile::tempdir().unwrap();
        variant.model("default").unwrap().save_pretrained(folder.path(), "default").unwrap();
        let mut model = Victim::new().unwrap();
        model.load_adapter(folder.path(), "default").unwrap();
        outputs.push(bits(&model.forward(ids).unwrap()).unwrap());
        folders.push(folder);
    }
    Saved { folders, outputs }
}

/// Runs `read` on all threads until `write` has finished, and returns how often each output was seen.
fn stress(known: &[Vec<u64>], read: impl Fn() -> Vec<u64> + Sync, write: impl FnOnce()) -> Vec<usize> {
    let done = AtomicBool::new(false);
    let seen: Vec<AtomicUsize> = known.iter().map(|_| AtomicUsize::new(0)).collect();
    let started = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                started.fetch_add(1, Ordering::SeqCst);
                while !done.load(Ordering::SeqCst) {
                    let output = read();
                    let place = known.iter().position(|known| *known == output);
                    let place = place.expect("an output that no adapter produces");
                    seen[place].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while started.load(Ordering::SeqCst) < READERS {
            std::thread::yield_now();
        }
        // Readers also stop if the writer fails.
        struct Done<'d>(&'d AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _done = Done(&done);
        write();
    });
    seen.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn outputs_under_a_hot_swap_are_those_of_one_adapter_or_the_other() {
    let ids = Victim::ids().unwrap();
    let Saved { folders, outputs } = saved(&ids);
    let mut model = Victim::new().unwrap();
    model.load_adapter(folders[0].path(), "default").unwrap();
    let model = RwLock::new(model);
    let read = || bits(&model.read().unwrap().forward(&ids).unwrap()).unwrap();
    let seen = stress(&outputs, read, || {
        for swap in 1..=SWAPS {
            let folder = &folders[swap % folders.len()];
            model.write().unwrap().hotswap_adapter(folder.path(), "default").unwrap();
            // A lock may favour the thread that holds it; this gives the readers their turn.
            std::thread::yield_now();
        }
    });
    assert!(seen.iter().sum::<usize>() > 0, "{seen:?}");
    assert_eq!(read(), outputs[SWAPS % outputs.len()]);
}

#[test]
fn no_reader_sees_a_swap_that_fails() {
    let ids = Victim::ids().unwrap();
    let Saved { folders, outputs } = saved(&ids);
    let damaged = tempfile::tempdir().unwrap();
    std::fs::copy(folders[1].path().join("adapter_config.json"), damaged.path().join("adapter_config.json"))
        .unwrap();
    std::fs::write(damaged.path().join("adapter_model.safetensors"), "damaged").unwrap();
    let mut model = Victim::new().unwrap();
    model.load_adapter(folders[0].path(), "default").unwrap();
    let model = RwLock::new(model);
    let read = || bits(&model.read().unwrap().forward(&ids).unwrap()).unwrap();
    stress(&outputs[..1], read, || {
        for _ in 0..SWAPS {
            assert!(model.write().unwrap().hotswap_adapter(damaged.path(), "default").is_err());
        }
    });
}

#[test]
fn adapters_that_are_added_and_deleted_do_not_show_in_rows_of_others() {
    let ids = Victim::ids().unwrap();
    let Saved { folders, .. } = saved(&ids);
    let mut model = Victim::new().unwrap();
    model.load_adapter(folders[0].path(), "fixed").unwrap();
    let rows = ["fixed", "__base__"];
    let expected =
        bits(&model.with_adapter_rows(&rows, |model| model.forward(&ids)).unwrap().unwrap()).unwrap();
    let model = RwLock::new(model);
    let read = || {
        let model = model.read().unwrap();
        bits(&model.with_adapter_rows(&rows, |model| model.forward(&ids)).unwrap().unwrap()).unwrap()
    };
    stress(std::slice::from_ref(&expected), read, || {
        for round in 0..SWAPS {
            model.write().unwrap().load_adapter(folders[round % folders.len()].path(), "guest").unwrap();
            std::thread::yield_now();
            model.write().unwrap().delete_adapter("guest").unwrap();
        }
    });
}
