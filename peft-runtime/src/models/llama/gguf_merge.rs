//! Adapters merged into a GGUF file: each tensor that they change is made dense, merged, and quantized to the type that it had.
//!
//! Nothing else of the file changes: types and shapes stay, so that metadata, names and places do, byte for byte.

use std::fmt;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::var_builder::SimpleBackend;

use super::gguf::name_in_transformers;
use super::gguf_base::{GgufBase, GgufTensor};
use crate::error::{Error, Result};
use crate::manage::{RequantizeReport, RequantizedLayer, requantize};
use crate::path::ModulePath;
use crate::store::{MergedWeights, NameMap, PendingFile, StoredAdapter, WriteProgress};

/// How many bytes of what does not change are copied at once.
const PIECE: usize = 1 << 20;

/// A GGUF file of the Llama family with adapters to merge into it, whose module names are those of transformers.
///
/// No more than one tensor is in memory, dense and quantized.
///
/// ```no_run
/// use peft_runtime::StoredAdapter;
/// use peft_runtime::models::llama::MergedGguf;
///
/// let merged = MergedGguf::open("model.gguf")?.add(StoredAdapter::open("path/to/adapter")?, 1.0)?;
/// let report = merged.write("merged.gguf", &mut |_| {})?;
/// println!("{report}");
/// # Ok::<(), peft_runtime::Error>(())
/// ```
pub struct MergedGguf {
    merged: MergedWeights<GgufBase>,
}

impl fmt::Debug for MergedGguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergedGguf").field("merged", &self.merged).finish()
    }
}

/// Where the bytes of the merged file go, piece by piece.
type Sink<'s> = dyn FnMut(&[u8]) -> Result<()> + 's;

impl MergedGguf {
    /// Opens a base model.
    ///
    /// # Errors
    /// An error that names the file if it cannot be read, holds another kind of model, or has tensors of types that cannot be
    /// written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let base = GgufBase::open(path.as_ref())?;
        let config = base.model_config();
        Ok(Self { merged: MergedWeights::with_model_config(base, config) })
    }

    /// Merges an adapter as [`MergedWeights::add`] does.
    ///
    /// # Errors
    /// As [`MergedWeights::add`], and if the merged model needs a head of its own, which the file has no place for.
    pub fn add(self, adapter: StoredAdapter, weight: f64) -> Result<Self> {
        self.add_renamed(adapter, weight, &NameMap::new())
    }

    /// Merges an adapter as [`MergedWeights::add_renamed`] does.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_renamed(self, adapter: StoredAdapter, weight: f64, names: &NameMap) -> Result<Self> {
        let name = adapter.name().to_owned();
        let merged = self.merged.add_renamed(adapter, weight, names)?;
        if let Some(head) = merged.own_head_of_tied() {
            let reason = "the file has no `output.weight`: its head is the table `token_embd.weight`, and with the adapter the two \
                          differ; merge into the safetensors files of the model and convert those"
                .to_owned();
            return Err(Error::CannotMerge { adapter: name, path: ModulePath::from(head.as_str()), reason });
        }
        Ok(Self { merged })
    }

    /// Writes the merged file, which appears when all of it is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`], also if there is a file of that name; [`Error::CannotMerge`]; [`Error::NotFinite`]; [`Error::Tensors`] if an
    /// adapter has tensors that belong nowhere.
    pub fn write(
        &self,
        path: impl AsRef<Path>,
        progress: &mut dyn FnMut(&WriteProgress<'_>),
    ) -> Result<RequantizeReport> {
        let path = path.as_ref();
        if path.exists() {
            let there =
                std::io::Error::new(std::io::ErrorKind::AlreadyExists, "there is a file of that name");
            return Err(Error::io("write", path)(there));
        }
        let mut report = None;
        PendingFile::stream(path.to_owned(), &mut |file| {
            let mut file = BufWriter::with_capacity(PIECE, file);
            report =
                Some(self.stream(progress, &mut |bytes| {
                    file.write_all(bytes).map_err(Error::io("write", path))
                })?);
            file.flush().map_err(Error::io("write", path))
        })?
        .persist()?;
        Ok(report.unwrap_or_default())
    }

    /// Reads what [`write`](Self::write) wrote, merges once more, and compares every byte.
    ///
    /// # Errors
    /// [`Error::Verification`] if a byte is not what it should be, and an error that names the file if it cannot be read.
    pub fn verify(&self, path: impl AsRef<Path>, progress: &mut dyn FnMut(&WriteProgress<'_>)) -> Result<()> {
        let path = path.as_ref();
        let written = GgufBase::open(path)?;
        let differs = |place: u64| {
            let reason = format!("byte {place} and those after it are not what merging gives");
            Error::Verification { path: path.to_owned(), reason }
        };
        let mut place = 0;
        self.stream(progress, &mut |bytes| {
            let end = place + bytes.len() as u64;
            if end > written.size() || written.bytes(place, bytes.len())? != bytes {
                return Err(differs(place));
            }
            place = end;
            Ok(())
        })?;
        if place == written.size() { Ok(()) } else { Err(differs(place)) }
    }

    /// All bytes of the merged file, in order.
    fn stream(
        &self,
        progress: &mut dyn FnMut(&WriteProgress<'_>),
        sink: &mut Sink<'_>,
    ) -> Result<RequantizeReport> {
        let base = self.merged.base();
        let (mut report, mut place) = (RequantizeReport::default(), 0);
        for tensor in base.tensors() {
            let Some(name) = name_in_transformers(tensor.name) else { continue };
            self.merged.note_asked(&name, tensor.info.shape.rank());
            if !self.merged.changes(&name) {
                continue;
            }
            if tensor.start < place {
                let reason = format!("`{}` lies over another tensor in the file", tensor.name);
                return Err(self.merged.cannot_merge(&ModulePath::from(name.as_str()), reason));
            }
            copy(base, place..tensor.start, sink)?;
            let (bytes, layer) = self.merged_tensor(&tensor, &name)?;
            sink(&bytes)?;
            place = tensor.start + bytes.len() as u64;
            report.layers.push(layer);
            progress(&WriteProgress { tensor: tensor.name, done: place, total: base.size() });
        }
        copy(base, place..base.size(), sink)?;
        self.merged.check_used()?;
        progress(&WriteProgress { tensor: "", done: base.size(), total: base.size() });
        Ok(report)
    }

    /// The bytes of a tensor that adapters change.
    fn merged_tensor(&self, tensor: &GgufTensor<'_>, name: &str) -> Result<(Vec<u8>, RequantizedLayer)> {
        let (shape, dtype) = (tensor.info.shape.clone(), tensor.info.ggml_dtype);
        let (module, parameter) = name.rsplit_once('.').unwrap_or((name, ""));
        let path = ModulePath::from(module);
        let exact = self.merged.get_unchecked(name, DType::F32, &Device::Cpu)?;
        if *exact.shape() != shape {
            let reason = format!(
                "`{}` would be {:?}, and the file has {:?}; a GGUF file's vocabulary cannot be resized here",
                tensor.name,
                exact.dims(),
                shape.dims()
            );
            return Err(self.merged.cannot_merge(&path, reason));
        }
        self.merged.check_finite(&path, parameter, &exact)?;
        let exact = self.merged.base().in_file_order(name, &exact)?;
        let (quantized, layer) = requantize(&path, &exact, dtype).map_err(Error::on_layer(&path))?;
        let bytes = quantized.data().map_err(Error::on_layer(&path))?.into_owned();
        if bytes.len() != tensor.size() {
            let reason =
                format!("`{}` would have {} bytes, and has {}", tensor.name, bytes.len(), tensor.size());
            return Err(self.merged.cannot_merge(&path, reason));
        }
        Ok((bytes, layer))
    }
}

/// Copies bytes of the base model.
fn copy(base: &GgufBase, range: std::ops::Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
    let mut place = range.start;
    while place < range.end {
        let length = usize::try_from(range.end - place).unwrap_or(PIECE).min(PIECE);
        sink(&base.bytes(place, length)?)?;
        place += length as u64;
    }
    Ok(())
}
