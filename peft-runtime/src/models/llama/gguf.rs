//! GGUF files: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Error as CandleError, Result as CandleResult, Shape, Tensor, bail};
use candle_nn::Linear;

use super::config::LlamaConfig;
use super::gguf_metadata::{Heads, config_of};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::layer::{Adapted, AnyLinear, QuantizedLinear};
use crate::store::read_gguf_content;

/// A file that a model is read from.
pub(super) struct GgufFile {
    content: Content,
    reader: BufReader<File>,
    /// What dense tensors are in.
    dtype: DType,
    device: Device,
    /// Whether linear layers keep their quantized blocks or become dense.
    keep_quantized: bool,
    pub(super) config: LlamaConfig,
}

impl GgufFile {
    /// Opens a file and reads the model's settings.
    ///
    /// # Errors
    /// An error that names the file if it cannot be read or holds another kind of model.
    pub(super) fn open(path: &Path, dtype: DType, device: &Device, keep_quantized: bool) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let mut reader = BufReader::new(file);
        let read = || -> CandleResult<Self> {
            let content = read_gguf_content(&mut reader, size)?;
            let factors = rope_factors(&content, &mut reader)?;
            let config = config_of(&content, factors)?;
            Ok(Self { content, reader, dtype, device: device.clone(), keep_quantized, config })
        };
        read().map_err(|error| Error::from(error).in_file(path))
    }

    /// A tensor by its name in transformers, with its rows in the order of transformers, on the model's device.
    fn quantized(&mut self, name: &str, shape: &[usize]) -> CandleResult<QTensor> {
        let name_in_file = name_in_file(name)?;
        let heads = Heads::of(&self.config).interleaved(name);
        let place = if heads.is_some() { Device::Cpu } else { self.device.clone() };
        let tensor = self.content.tensor(&mut self.reader, &name_in_file, &place)?;
        if tensor.shape().dims() != shape {
            let (expected, got) = (Shape::from(shape), tensor.shape().clone());
            let msg = format!("the shape of `{name_in_file}` does not fit the model");
            return Err(CandleError::UnexpectedShape { msg, expected, got }.bt());
        }
        match heads {
            Some(heads) => halves_apart(&tensor, heads, &self.device),
            None => Ok(tensor),
        }
    }
}

impl Weights for GgufFile {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> CandleResult<Tensor> {
        self.quantized(name, shape)?.dequantize(&self.device)?.to_dtype(self.dtype)
    }

    fn linear(
        &mut self,
        name: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> CandleResult<Adapted<AnyLinear>> {
        let weight = self.quantized(&format!("{name}.weight"), &[out_features, in_features])?;
        let bias = self.bias(name, out_features, bias)?;
        Ok(Adapted::new(if self.keep_quantized {
            AnyLinear::from(QuantizedLinear::new(weight, bias)?)
        } else {
            AnyLinear::from(Linear::new(weight.dequantize(&self.device)?.to_dtype(self.dtype)?, bias))
        }))
    }
}

/// What each frequency of the rotary embedding is divided by, if the file has such factors.
fn rope_factors(content: &Content, reader: &mut BufReader<File>) -> CandleResult<Option<Vec<f32>>> {
    const NAME: &str = "rope_freqs.weight";
    if !content.tensor_infos.contains_key(NAME) {
        return Ok(None);
    }
    content.tensor(reader, NAME, &Device::Cpu)?.dequantize(&Device::Cpu)?.to_vec1().map(Some)
}

/// Reorders the rows of each head, which are whole blocks: `[pair, half]` becomes `[half, pair]`.
fn halves_apart(tensor: &QTensor, heads: usize, device: &Device) -> CandleResult<QTensor> {
    let dims = tensor.shape().dims();
    let rows = dims.first().copied().unwrap_or_default();
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
        bail!("{rows} rows cannot be the pairs of {heads} heads")
    }
    let (head_size, half) = (rows / heads, rows / heads / 2);
    let data = tensor.data()?;
    let row_bytes = data.len() / rows;
    let mut reordered = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (head, place) = (row / head_size, row % head_size);
        let source = head * head_size + 2 * (place % half) + place / half;
        reordered.extend_from_slice(&data[source * row_bytes..(source + 1) * row_bytes]);
    }
    qtensor_from_ggml(tensor.dtype(), &reordered, dims.to_vec(), device)
}

/// The modules outside of blocks: transformers' names and llama.cpp's.
const OUTER: [(&str, &str); 3] =
    [("lm_head", "output"), ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm")];

/// The modules of a block.
const BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.v_proj", "attn_v"),
];

/// llama.cpp's name for a tensor.
pub(super) fn name_in_file(name: &str) -> CandleResult<String> {
    let unknown = || CandleError::CannotFindTensor { path: name.to_owned() }.bt();
    let (module, parameter) = name.rsplit_once('.').ok_or_else(unknown)?;
    let theirs = |names: &[(&str, &'static str)], own: &str| {
        names.iter().find(|(known, _)| *known == own).map(|(_, theirs)| *theirs)
    };
    let known = match module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((block, module)) => theirs(&BLOCK, module).map(|module| format!("blk.{block}.{module}")),
        None => theirs(&OUTER, module).map(str::to_owned),
    };
    known.map(|module| format!("{module}.{parameter}")).ok_or_else(unknown)
}

/// Transformers' name for a tensor; `None` for one that transformers does not have.
pub(super) fn name_in_transformers(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    let own = |names: &[(&'static str, &str)], theirs: &str| {
        names.iter().find(|(_, known)| *known == theirs).map(|(own, _)| *own)
    };
    let known = match module.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((block, module)) => own(&BLOCK, module).map(|module| format!("model.layers.{block}.{module}")),
        None => own(&OUTER, module).map(str::to_owned),
    }?;
    Some(format!("{known}.{parameter}"))
}

#[cfg(test)]
mod tests {
    use super::{halves_apart, name_in_file, name_in_transformers};
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    #[test]
    fn tensors_have_the_names_of_llama_cpp() {
        let name = |name| name_in_file(name).unwrap();
        assert_eq!(name("model.layers.11.self_attn.o_proj.weight"), "blk.11.attn_output.weight");
        assert_eq!(name("model.layers.0.self_attn.q_proj.bias"), "blk.0.attn_q.bias");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert!(name_in_file("model.layers.0.self_attn.rotary_emb.inv_freq").is_err());
        for own in ["model.layers.11.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"] {
            assert_eq!(name_in_transformers(&name(own)).as_deref(), Some(own));
        }
        assert_eq!(name_in_transformers("rope_freqs.weight"), None);
    }

    #[test]
    fn pairs_of_rows_go_half_a_head_apart_in_blocks_too() {
        let device = Device::Cpu;
        let rows: Vec<f32> = (0..12).map(|row| row as f32).collect();
        let order = [0f32, 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.];
        let tensor = Tensor::from_vec(rows, 12, &device).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
        let apart = halves_apart(&tensor, 2, &device).unwrap().dequantize(&device).unwrap();
        assert_eq!(apart.to_vec1::<f32>().unwrap(), order);

        let blocks: Vec<f32> = (0..12).flat_map(|row| vec![row as f32; 64]).collect();
        let tensor = Tensor::from_vec(blocks, (12, 64), &device).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
        let apart = halves_apart(&tensor, 2, &device).unwrap().dequantize(&device).unwrap();
        for (row, expected) in apart.to_vec2::<f32>().unwrap().iter().zip(order) {
            assert!(row.iter().all(|value| (value - expected).abs() < 0.01), "{row:?}");
        }
        assert!(halves_apart(&tensor, 5, &device).is_err());
    }
}
