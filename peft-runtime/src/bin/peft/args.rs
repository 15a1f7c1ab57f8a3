//! The command line.

use std::ops::Range;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use peft_runtime::{CombinationType, MajoritySign, NameMap};

/// Works on adapters in the format of Python PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`.
///
/// The exit status is 0, or 1 after an error, or 2 if the command line makes no sense.
#[derive(Debug, Parser)]
#[command(name = "peft", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what an adapter holds, layer by layer, and warns of tensors that are zero or not finite.
    Inspect(InspectArguments),
    /// Merges adapters into a base model and writes it as safetensors files like the base model's.
    Merge(MergeArguments),
    /// Makes one adapter out of several, without a model.
    Combine(CombineArguments),
    /// Shows in which layers two adapters differ, and by how much.
    Diff(DiffArguments),
    /// Writes an adapter in another form.
    Convert(ConvertArguments),
}

/// The arguments of `peft inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The adapter's folder, or its safetensors file.
    pub adapter: PathBuf,
    /// Draws the norms of the updates, blocks across and modules down, into this PNG file.
    #[arg(long, value_name = "FILE.png")]
    pub plot: Option<PathBuf>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `peft merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The base model: its folder, or its safetensors files.
    #[arg(long, required = true, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// The adapters, merged in this order.
    #[arg(long, required = true, num_args = 1.., value_name = "DIR")]
    pub adapter: Vec<PathBuf>,
    /// What each adapter's scaling is multiplied with, in the order of the adapters; 1 for all without it.
    #[arg(long, num_args = 1.., value_delimiter = ',', allow_negative_numbers = true, value_name = "NUMBER")]
    pub weights: Vec<f64>,
    /// The folder to write, which must not exist, or be empty. It appears when all of it is written.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Reads the files back, merges once more and compares every byte.
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub names: NameArguments,
    /// Shows no progress.
    #[arg(short, long)]
    pub quiet: bool,
    /// Prints JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How the base model's names differ from the adapters'.
#[derive(Debug, Args)]
pub struct NameArguments {
    /// The base model has TO at the beginning of paths where the adapters have FROM; either may be empty.
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    pub rename: Vec<(String, String)>,
    /// The base model has TO at the end of a module's path where the adapters have FROM.
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    pub rename_module: Vec<(String, String)>,
    /// The adapters' module FROM is the outputs START to END (without END) of the base model's module TO.
    #[arg(long, value_name = "FROM=TO:START..END", value_parser = parse_fused)]
    pub fuse: Vec<Fused>,
}

/// A module that is a part of a fused one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// The adapters' module.
    pub from: String,
    /// The base model's module.
    pub to: String,
    /// The outputs of the base model's module.
    pub rows: Range<usize>,
}

/// The arguments of `peft combine`.
#[derive(Debug, Args)]
pub struct CombineArguments {
    /// The adapters' folders.
    #[arg(required = true, num_args = 1.., value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
    /// How they are combined, by PEFT's names.
    #[arg(long = "type", value_name = "TYPE", default_value = "svd", value_parser = parse_type, help = types())]
    pub combination: CombinationType,
    /// The weight of each adapter in their order; 1 for all without it.
    #[arg(long, num_args = 1.., value_delimiter = ',', allow_negative_numbers = true, value_name = "NUMBER")]
    pub weights: Vec<f64>,
    /// The folder to write the new adapter to.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The rank of the result, for the types that end in `svd`; by default the largest of the adapters' ranks.
    #[arg(long, value_name = "RANK")]
    pub svd_rank: Option<usize>,
    /// Clamps the elements of the new factors to this quantile, between 0 and 1.
    #[arg(long, value_name = "QUANTILE")]
    pub svd_clamp: Option<f64>,
    /// The share of elements that pruning keeps, for the types that prune.
    #[arg(long, value_name = "SHARE")]
    pub density: Option<f64>,
    /// How signs are elected where adapters disagree: `total` or `frequency`.
    #[arg(long, default_value = "total", value_parser = parse_sign)]
    pub majority_sign: MajoritySign,
    /// The seed of random pruning.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The base model, for adapters whose sum starts from its weights (DoRA, full copies of modules, tokens).
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// Replaces an adapter that is in the output folder.
    #[arg(long)]
    pub force: bool,
    /// Prints JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `peft diff`.
#[derive(Debug, Args)]
pub struct DiffArguments {
    /// The first adapter.
    pub a: PathBuf,
    /// The second adapter.
    pub b: PathBuf,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `peft convert`.
#[derive(Debug, Args)]
pub struct ConvertArguments {
    /// The adapter's folder.
    pub adapter: PathBuf,
    /// The form to write.
    #[arg(long, value_enum)]
    pub to: Form,
    /// The folder to write for `plain-lora`, the file for `gguf`.
    #[arg(short, long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// The base model: its weights for adapters that changed them (PiSSA, OLoRA, LoftQ), its `config.json` for `gguf`.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// The base model's `config.json`, if it is not in the base model's folder; for `gguf`.
    #[arg(long, value_name = "FILE")]
    pub model_config: Option<PathBuf>,
    /// Writes half precision; for `gguf`.
    #[arg(long)]
    pub f16: bool,
    /// Replaces what is at the output.
    #[arg(long)]
    pub force: bool,
    /// Prints JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The forms that adapters are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// LoRA without rank stabilisation, alpha patterns, singular values or an init that changed the base model.
    PlainLora,
    /// The adapter format of llama.cpp.
    Gguf,
}

impl Arguments {
    /// What the declarations cannot say: arguments that have to go together.
    ///
    /// # Errors
    /// A usage error.
    pub fn check(&self) -> Result<(), clap::Error> {
        let wrong = |reason: String| Err(Self::command().error(ErrorKind::WrongNumberOfValues, reason));
        let (adapters, weights) = match &self.command {
            Command::Merge(arguments) => (arguments.adapter.len(), arguments.weights.len()),
            Command::Combine(arguments) => (arguments.adapters.len(), arguments.weights.len()),
            _ => return Ok(()),
        };
        if weights != 0 && weights != adapters {
            return wrong(format!("there are {adapters} adapters and {weights} weights"));
        }
        Ok(())
    }
}

impl NameArguments {
    /// The map that they describe.
    pub fn map(&self) -> NameMap {
        let mut names = NameMap::new();
        for (from, to) in &self.rename {
            names = names.prefix(from, to);
        }
        for (from, to) in &self.rename_module {
            names = names.module(from, to);
        }
        for fused in &self.fuse {
            names = names.rows(&fused.from, &fused.to, fused.rows.clone());
        }
        names
    }
}

/// The weight of each adapter.
pub fn weights(given: &[f64], adapters: usize) -> Vec<f64> {
    if given.is_empty() { vec![1.0; adapters] } else { given.to_vec() }
}

fn types() -> String {
    let names = CombinationType::ALL.map(CombinationType::name).join(", ");
    format!("How they are combined, by PEFT's names: {names}")
}

fn parse_type(text: &str) -> Result<CombinationType, String> {
    text.parse().map_err(|error: peft_runtime::Error| error.to_string())
}

fn parse_sign(text: &str) -> Result<MajoritySign, String> {
    text.parse().map_err(|error: peft_runtime::Error| error.to_string())
}

fn parse_rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) => Ok((from.to_owned(), to.to_owned())),
        None => Err("there is no `=` between the two names".to_owned()),
    }
}

fn parse_fused(text: &str) -> Result<Fused, String> {
    let form = || "it is not of the form FROM=TO:START..END".to_owned();
    let (from, rest) = text.split_once('=').ok_or_else(form)?;
    let (to, rows) = rest.rsplit_once(':').ok_or_else(form)?;
    let (start, end) = rows.split_once("..").ok_or_else(form)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| form());
    let rows = number(start)?..number(end)?;
    if rows.is_empty() {
        return Err(format!("no output is in {start}..{end}"));
    }
    Ok(Fused { from: from.to_owned(), to: to.to_owned(), rows })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Arguments, Command, Fused, parse_fused};

    #[test]
    fn the_declarations_go_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn weights_may_be_negative_and_have_to_be_as_many_as_adapters() {
        let parse = |weights: &[&str]| {
            let merge = ["peft", "merge", "--base", "base", "--adapter", "a", "b", "-o", "out", "--weights"];
            Arguments::try_parse_from(merge.iter().chain(weights)).unwrap()
        };
        let arguments = parse(&["-0.5", "1e-1"]);
        assert!(arguments.check().is_ok());
        let Command::Merge(merge) = arguments.command else { panic!("not merge") };
        assert_eq!(merge.weights, [-0.5, 0.1]);
        assert!(parse(&["1", "2", "3"]).check().is_err());
    }

    #[test]
    fn parts_of_fused_modules_are_read() {
        let fused = Fused { from: "q_proj".to_owned(), to: "qkv".to_owned(), rows: 0..64 };
        assert_eq!(parse_fused("q_proj=qkv:0..64"), Ok(fused));
        for wrong in ["q_proj", "q=qkv", "q=qkv:1", "q=qkv:a..b", "q=qkv:4..4"] {
            assert!(parse_fused(wrong).is_err(), "{wrong}");
        }
    }
}
