//! A process that is killed at random moments and resumed ends with the same bytes as an uninterrupted one.

#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use peft_runtime::train::Checkpoints;
use peft_tests::moments::Moments;
use peft_tests::training::files;

const STEPS: u64 = 30;

/// How often the process is killed before it may finish.
const KILLS: usize = 12;

fn start(folder: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train_victim"));
    command.arg(folder).arg(STEPS.to_string()).spawn().unwrap()
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (through, broken) = (folder.path().join("through"), folder.path().join("broken"));
    let begin = Instant::now();
    assert!(start(&through).wait().unwrap().success());
    // The first kill comes before the end.
    let half = begin.elapsed() / 2;

    let mut moments = Moments::of_this_run();
    let seed = moments.seed;
    let (mut kills, mut reached) = (0, 0);
    loop {
        let mut child = start(&broken);
        if kills < KILLS {
            std::thread::sleep(Duration::from_millis(3) + moments.below(half));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert!(status.code().is_none(), "seed {seed}: the process failed by itself: {status}");
        kills += 1;
        // Whatever it was doing, the newest checkpoint is complete, and no step is lost once it was written.
        let latest = Checkpoints::new(&broken).latest().unwrap();
        let step = latest.map_or(0, |checkpoint| checkpoint.state().step);
        assert!(step >= reached, "seed {seed}: step {step} after {reached}");
        reached = step;
    }
    assert!(kills > 0, "seed {seed}: the process was done before it could be killed");

    let last = format!("step-{STEPS}");
    let [through, broken] = [&through, &broken].map(|folder| files(&folder.join(&last)).unwrap());
    assert!(through.len() >= 5, "{:?}", through.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for ((name, expected), (other, found)) in through.iter().zip(&broken) {
        assert_eq!(name, other, "seed {seed}");
        assert!(expected == found, "seed {seed}: `{name}` differs after {kills} kills");
    }
    assert_eq!(through.len(), broken.len());
}
