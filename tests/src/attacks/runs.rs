//! Hostile checkpoints of training runs.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use peft_runtime::Result;
use serde_json::{Map, Value, json};

use super::build::{safetensors_of, safetensors_with};
use super::{Attack, Files, Make};
use crate::training::{Method, files, run};

const STATE: &str = "training.json";
const PARAMETERS: &str = "parameters.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const ALLOCATOR: &str = "rank_allocator.safetensors";

/// The files of one checkpoint.
#[derive(Clone)]
pub struct RunFiles {
    folder: String,
    files: BTreeMap<String, Vec<u8>>,
}

impl RunFiles {
    /// The last checkpoint of a short run; a run of AdaLoRA has pruned ranks.
    ///
    /// # Errors
    /// If the run fails.
    pub fn of_run(method: Method) -> Result<Self> {
        let steps = 8;
        let folder = tempfile::tempdir().map_err(candle_core::Error::Io)?;
        run(method, folder.path(), steps, steps, || {})?;
        let last = format!("step-{steps}");
        let found = files(&folder.path().join(&last)).map_err(candle_core::Error::Io)?;
        Ok(Self { folder: last, files: found.into_iter().collect() })
    }

    /// The names of the files that are read when the run resumes.
    pub fn names(&self) -> Vec<String> {
        let read = [STATE, PARAMETERS, OPTIMIZER, ALLOCATOR];
        self.files.keys().filter(|name| read.contains(&name.as_str())).cloned().collect()
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.files.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Replaces the bytes of a file, and leaves the sizes in the state as they were.
    pub fn damage(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), bytes);
    }

    /// Replaces the bytes of a file, and writes its new size into the state.
    pub fn replace(&mut self, name: &str, bytes: Vec<u8>) {
        let size = bytes.len();
        self.damage(name, bytes);
        self.edit_state(|state| {
            if let Some(sizes) = state.get_mut("files").and_then(Value::as_object_mut) {
                sizes.insert(name.to_owned(), json!(size));
            }
        });
    }

    fn edit_state(&mut self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut state: Map<String, Value> = serde_json::from_slice(self.bytes(STATE)).unwrap_or_default();
        edit(&mut state);
        self.damage(STATE, Value::Object(state).to_string().into_bytes());
    }

    /// Changes the tensors whose names begin with `prefix`.
    fn edit_tensors(
        &mut self,
        name: &str,
        prefix: &str,
        change: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let loaded = candle_core::safetensors::load_buffer(self.bytes(name), &Device::Cpu)?;
        let mut tensors: BTreeMap<String, Tensor> = loaded.into_iter().collect();
        for tensor in tensors.iter_mut().filter(|(key, _)| key.starts_with(prefix)).map(|(_, tensor)| tensor)
        {
            *tensor = change(tensor)?;
        }
        let bytes = safetensors_of(&tensors)?;
        self.replace(name, bytes);
        Ok(())
    }

    /// The files with their folder.
    pub fn into_files(self) -> Files {
        let Self { folder, files } = self;
        files.into_iter().map(|(name, bytes)| (format!("{folder}/{name}"), bytes)).collect()
    }
}

fn refused(
    name: &'static str,
    tries: &'static str,
    file: &'static str,
    says: &'static str,
    make: fn(&mut RunFiles) -> Result<()>,
) -> Attack {
    let method = if file == ALLOCATOR { Method::AdaLora } else { Method::Lora };
    Attack { name, tries, file, says: Some(says), make: Make::Run(method, make) }
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn attacks() -> Vec<Attack> {
    vec![
        refused(
            "run-with-a-file-outside",
            "a file outside the checkpoint",
            STATE,
            "is not a file of a checkpoint",
            |run| {
                run.edit_state(|state| drop(state.insert("files".into(), json!({"../../../etc/passwd": 1}))));
                Ok(())
            },
        ),
        refused("run-from-the-future", "a format of an unknown version", STATE, "only 1 is known", |run| {
            run.edit_state(|state| drop(state.insert("format".into(), json!(2))));
            Ok(())
        }),
        refused(
            "run-of-2-to-the-64-steps",
            "a count that the next step overflows",
            STATE,
            "more than a run",
            |run| {
                run.edit_state(|state| drop(state.insert("step".into(), json!(u64::MAX))));
                Ok(())
            },
        ),
        refused(
            "run-of-negative-steps",
            "a count that turns into a huge one",
            STATE,
            "not a valid training state",
            |run| {
                run.edit_state(|state| drop(state.insert("step".into(), json!(-1))));
                Ok(())
            },
        ),
        refused(
            "run-state-that-nests",
            "brackets that overflow the stack",
            STATE,
            "not a valid training state",
            |run| {
                run.damage(STATE, "[".repeat(100_000).into_bytes());
                Ok(())
            },
        ),
        refused(
            "run-cut-short",
            "a file that a full disk cut short",
            OPTIMIZER,
            "bytes and should have",
            |run| {
                let half = run.bytes(OPTIMIZER).len() / 2;
                let bytes = run.bytes(OPTIMIZER).get(..half).unwrap_or_default().to_vec();
                run.damage(OPTIMIZER, bytes);
                Ok(())
            },
        ),
        refused("run-strides", "an empty tensor whose strides overflow", OPTIMIZER, "too large", |run| {
            let header =
                r#"{"a": {"dtype": "F32", "shape": [0, 9223372036854775808, 2], "data_offsets": [0, 0]}}"#;
            run.replace(OPTIMIZER, safetensors_with(header, b""));
            Ok(())
        }),
        refused("run-without-parameters", "a run that trains nothing", PARAMETERS, "missing: ", |run| {
            run.replace(PARAMETERS, safetensors_with("{}", b""));
            Ok(())
        }),
        refused("run-with-other-moments", "moments of the wrong shape", OPTIMIZER, "has shape [1]", |run| {
            run.edit_tensors(OPTIMIZER, "exp_avg.", |_| Ok(Tensor::new(&[0f32], &Device::Cpu)?))
        }),
        refused("run-with-other-means", "means of the wrong shape", ALLOCATOR, "has shape [1]", |run| {
            run.edit_tensors(ALLOCATOR, "sensitivity.", |_| Ok(Tensor::new(&[0f32], &Device::Cpu)?))
        }),
        refused(
            "run-with-other-ranks",
            "more ranks than the adapter has",
            ALLOCATOR,
            "has shape [99]",
            |run| {
                run.edit_tensors(ALLOCATOR, "kept.", |_| {
                    Ok(Tensor::from_vec(vec![1u8; 99], 99, &Device::Cpu)?)
                })
            },
        ),
    ]
}
