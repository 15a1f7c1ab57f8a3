//! SmolLM2 from a real GGUF file, compared with candle-transformers' quantized model.
//!
//! The file is not part of the repository: `scripts/fetch-assets.sh DIR smollm2` downloads it, and `PEFT_ASSETS=DIR` says where
//! it is. Without that variable the tests say that they were skipped.
//!
//! candle's product with a quantized weight rounds the other factor to 8 bits and ours does not, so either of two tokens
//! with nearly the same logit may come first. Of twelve prompts that were tried, seven continue in the same way for 32
//! tokens, among them `PROMPTS`. With `CANDLE_DEQUANTIZE_ALL`, candle makes the weights dense and rounds nothing: then the
//! logits have to agree as well, also on `CLOSE_PROMPT`, which continues differently with rounding.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use peft_runtime::models::generate::{GenerateOptions, generate};
use peft_runtime::models::llama::LlamaModel;
use peft_tests::close::{Tolerance, assert_close};

/// How many tokens the prompts are continued by.
const TOKENS: usize = 32;

/// The largest difference between logits, relative to the largest logit.
const ROUNDING: f64 = 1e-4;

/// If this variable is 1, candle makes quantized weights dense.
const DENSE: &str = "CANDLE_DEQUANTIZE_ALL";

/// A text, code, and a question in the model's chat format, as tokens of the file: `Ġ` is a space, `Ċ` the end of a line.
const PROMPTS: [&str; 3] = [
    "Water Ġis Ġmade Ġof",
    "def Ġfactor ial ( n ): ĊĠĠĠ Ġif Ġn Ġ== Ġ 0 : Ċ",
    "<|im_start|> system Ċ You Ġare Ġa Ġhelpful ĠAI Ġassistant Ġnamed ĠSm ol LM , Ġtrained Ġby \
     ĠH ugging ĠFace <|im_end|> Ċ <|im_start|> user Ċ What Ġis Ġgravity ? <|im_end|> Ċ <|im_start|> ass istant Ċ",
];

/// At the sixth token that follows, the two most probable ones are close.
const CLOSE_PROMPT: &str = "The Ġcapital Ġof ĠFrance Ġis";

/// The file, if the environment names it.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn file() -> Option<PathBuf> {
    let folder = std::env::var_os("PEFT_ASSETS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: `PEFT_ASSETS` does not name the folder that `scripts/fetch-assets.sh` filled");
    }
    Some(folder?.join("smollm2.gguf"))
}

/// candle's model, and the tokens that its file knows.
struct Candle {
    model: ModelWeights,
    tokens: Vec<String>,
}

impl Candle {
    fn open(file: &Path) -> Self {
        let mut reader = BufReader::new(File::open(file).unwrap());
        let content = Content::read(&mut reader).unwrap();
        let tokens = content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        let tokens = tokens.iter().map(|token| token.to_string().unwrap().clone()).collect();
        let model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).unwrap();
        Self { model, tokens }
    }

    fn ids(&self, prompt: &str) -> Vec<u32> {
        let id = |token: &str| {
            let place = self.tokens.iter().position(|known| known == token);
            place.unwrap_or_else(|| panic!("the file has no token `{token}`")) as u32
        };
        prompt.split(' ').map(id).collect()
    }

    fn text(&self, ids: &[u32]) -> String {
        ids.iter().map(|id| self.tokens[*id as usize].as_str()).collect()
    }

    /// The most probable continuation, and the logits from which its tokens were chosen, `[tokens, vocabulary]`.
    fn continuation(&mut self, prompt: &[u32]) -> (Vec<u32>, Tensor) {
        let (mut text, mut logits) = (prompt.to_vec(), Vec::new());
        let mut taken_in = 0;
        while logits.len() < TOKENS {
            let ids = Tensor::new(&text[taken_in..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            // Position 0 empties the cache.
            let next = self.model.forward(&ids, taken_in).unwrap().squeeze(0).unwrap();
            taken_in = text.len();
            text.push(next.argmax(0).unwrap().to_scalar().unwrap());
            logits.push(next);
        }
        (text.split_off(prompt.len()), Tensor::stack(&logits, 0).unwrap())
    }

    /// Checks that our model continues the prompt in the same way; returns its ids, the continuation and candle's logits.
    fn compare(&mut self, ours: &LlamaModel, prompt: &str) -> (Vec<u32>, Vec<u32>, Tensor) {
        let ids = self.ids(prompt);
        let (expected, logits) = self.continuation(&ids);
        let tokens = generate(ours, &ids, &GenerateOptions::new(TOKENS), |_| ()).unwrap();
        let same = tokens.iter().zip(&expected).take_while(|(ours, theirs)| ours == theirs).count();
        assert!(
            tokens == expected,
            "`{prompt}` continues differently after {same} tokens:\n   ours: {}\n candle: {}",
            self.text(&tokens),
            self.text(&expected)
        );
        (ids, expected, logits)
    }
}

/// Runs one test of this program again, with candle's weights dense: candle looks at the variable only once.
fn run_with_dense_weights(test: &str) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.args(["--exact", test]).env(DENSE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn greedy_continuations_are_those_of_candles_quantized_model() {
    let Some(file) = file() else { return };
    let mut candle = Candle::open(&file);
    let ours = LlamaModel::from_gguf_quantized(&file, &Device::Cpu).unwrap();
    for prompt in PROMPTS {
        candle.compare(&ours, prompt);
    }
}

#[test]
fn logits_are_those_of_candles_model_with_dense_weights() {
    let Some(file) = file() else { return };
    if std::env::var_os(DENSE).is_none_or(|value| value != "1") {
        return run_with_dense_weights("logits_are_those_of_candles_model_with_dense_weights");
    }
    let mut candle = Candle::open(&file);
    let ours = LlamaModel::from_gguf(&file, &Device::Cpu).unwrap();
    for prompt in PROMPTS.into_iter().chain([CLOSE_PROMPT]) {
        let (ids, continuation, expected) = candle.compare(&ours, prompt);
        // The whole text at once, without a cache; the last token predicts nothing that candle has computed.
        let text = [&ids[..], &continuation[..TOKENS - 1]].concat();
        let text = Tensor::new(text.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = ours.forward(&text, None).unwrap().squeeze(0).unwrap();
        let logits = logits.narrow(0, ids.len() - 1, TOKENS).unwrap();
        let tolerance = Tolerance::of_largest(ROUNDING, &expected);
        assert_close(&logits, &expected, tolerance, format_args!("the logits on `{prompt}`"));
    }
}
