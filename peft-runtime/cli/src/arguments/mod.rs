//! The command line.

mod parsing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;

use candle_core::DType;
use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use peft_runtime::{CombinationType, MajoritySign, NameMap, StoredAdapter};

use self::parsing::{parse_fused, parse_rename, parse_sign, parse_type, types};
use crate::check::arguments::CheckArguments;
pub use crate::written_format::{Component, Format};

/// Inspect, merge, combine, compare and convert adapters saved by Python PEFT, by peft-runtime or by other programs.
///
/// An adapter is a folder or a file; its format is found by its content: PEFT's own (safetensors or `adapter_model.bin`) and those
/// of other programs, some of which take the base model too (`--base`). The exit status is 0 on success, 1 on an
/// error, and 2 if the command line is invalid.
#[derive(Debug, Parser)]
#[command(name = "peft", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The format of an adapter that is found by its content.
pub const AUTO: &str = "auto";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what an adapter contains, layer by layer, and warn about tensors that are all zero, NaN or infinite.
    Inspect(InspectArguments),
    /// Merge adapters into a base model and write the result in the layout of the base model's safetensors files, or as a
    /// GGUF file with the types of the base model's.
    Merge(MergeArguments),
    /// Combine several adapters into one, without loading a model.
    Combine(CombineArguments),
    /// Show which layers of two adapters differ, and by how much.
    Diff(DiffArguments),
    /// Convert an adapter of any format to PEFT's, to plain LoRA, or to the format of another program.
    Convert(ConvertArguments),
    /// Say which programs take an adapter, and whether they use every tensor of it.
    ///
    /// With `--for`, the exit status is 0 if the program takes the adapter and uses all of it as PEFT does, and 1 if it refuses
    /// it, ignores something, or if the base model does not fit. Without `--for`, each program has a line, and the status is 0 if at
    /// least one of them takes the adapter.
    Check(CheckArguments),
}

/// The arguments of `peft inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The adapter: its folder or file.
    pub adapter: PathBuf,
    /// The base model, for the names of its modules; some formats need it.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// Also draw the norms of the updates as a PNG: one column per block, one row per module.
    #[arg(long, value_name = "FILE.png")]
    pub plot: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `peft merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The base model: its folder, its safetensors files, or a GGUF file.
    #[arg(long, required = true, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// The adapters, merged in this order.
    #[arg(long, required = true, num_args = 1.., value_name = "DIR|FILE")]
    pub adapter: Vec<PathBuf>,
    /// One factor per adapter, by which its scaling is multiplied; all 1 by default.
    #[arg(long, num_args = 1.., value_delimiter = ',', allow_negative_numbers = true, value_name = "NUMBER")]
    pub weights: Vec<f64>,
    /// The folder to write: a new or an empty one; for a GGUF base, a new file. It appears only once everything is written.
    #[arg(short, long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// Read the written files back, merge again, and compare every byte; then compare what the merged model computes with what
    /// base model and adapters do, where the model is of a known type.
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub names: NameArguments,
    /// Do not show progress.
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How module names of the base model differ from those of the adapters.
#[derive(Debug, Args)]
pub struct NameArguments {
    /// Module paths that start with FROM in the adapters start with TO in the base model. Either may be empty.
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    pub rename: Vec<(String, String)>,
    /// Module paths that end with FROM in the adapters end with TO in the base model.
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    pub rename_module: Vec<(String, String)>,
    /// The adapters' module FROM is outputs START to END (END not included) of the base model's fused module TO.
    #[arg(long, value_name = "FROM=TO:START..END", value_parser = parse_fused)]
    pub fuse: Vec<Fused>,
}

/// A module of the adapters that is part of a fused module of the base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// The adapters' module.
    pub from: String,
    /// The base model's module.
    pub to: String,
    /// The outputs of the fused module that belong to it.
    pub rows: Range<usize>,
}

/// The arguments of `peft combine`.
#[derive(Debug, Args)]
pub struct CombineArguments {
    /// The adapters' folders or files.
    #[arg(required = true, num_args = 1.., value_name = "DIR|FILE")]
    pub adapters: Vec<PathBuf>,
    /// The combination type, under PEFT's name.
    #[arg(long = "type", value_name = "TYPE", default_value = "svd", value_parser = parse_type, help = types())]
    pub combination: CombinationType,
    /// One weight per adapter; all 1 by default.
    #[arg(long, num_args = 1.., value_delimiter = ',', allow_negative_numbers = true, value_name = "NUMBER")]
    pub weights: Vec<f64>,
    /// The folder to save the new adapter in.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The rank of the result, for types that end in `svd`; by default the largest rank of the adapters.
    #[arg(long, value_name = "RANK")]
    pub svd_rank: Option<usize>,
    /// Clamp the elements of the new factors to this quantile (0 to 1), for types that end in `svd`.
    #[arg(long, value_name = "QUANTILE")]
    pub svd_clamp: Option<f64>,
    /// The share of elements that pruning keeps (0 to 1), for types that prune.
    #[arg(long, value_name = "SHARE")]
    pub density: Option<f64>,
    /// How to choose a sign where adapters disagree: by `total` value or by `frequency`.
    #[arg(long, value_name = "total|frequency", default_value = "total", value_parser = parse_sign)]
    pub majority_sign: MajoritySign,
    /// The seed of random pruning, for types that start with `dare`.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// Let full copies, DoRA's magnitudes and biases of B start again, as PEFT does, instead of combining or refusing them.
    #[arg(long)]
    pub restart: bool,
    /// The base model, from which rows of trainable tokens start again, and with --restart full copies and DoRA's magnitudes, and
    /// which some formats need.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// Round the numbers of the result to this type: bf16, f16 or f32. Without it they stay as they are computed, in f32.
    #[arg(long, value_name = "TYPE", value_parser = crate::float_type::parse_float_type)]
    pub dtype: Option<DType>,
    /// Replace an adapter in the output folder.
    #[arg(long)]
    pub force: bool,
    /// Print JSON instead of text.
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
    /// The base model of both, for the names of its modules; some formats need it.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `peft convert`.
#[derive(Debug, Args)]
pub struct ConvertArguments {
    /// The adapter: its folder or file.
    pub adapter: PathBuf,
    /// The format that the adapter is in, as `peft inspect` names it; by default it is found.
    #[arg(long, value_name = "FORMAT", default_value = AUTO, value_parser = PossibleValuesParser::new(
        std::iter::once(AUTO).chain(StoredAdapter::formats())
    ))]
    pub from: String,
    /// The format to write.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: Format,
    /// The folder (`peft`, `plain-lora`, `mlx`) or file (`gguf`, `kohya`, `diffusers`) to write.
    #[arg(short, long, value_name = "DIR|FILE")]
    pub output: PathBuf,
    /// The base model: its weights are needed for inits that change them (PiSSA, OLoRA, LoftQ) and to read some formats, its
    /// `config.json` for `gguf`.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// The base model's `config.json`, for `gguf`, if it is not in the base model's folder.
    #[arg(long, value_name = "FILE")]
    pub model_config: Option<PathBuf>,
    /// The model that the adapter is for, for `kohya` and `diffusers`; by default told by the names of its modules.
    #[arg(long, value_enum, value_name = "MODEL")]
    pub component: Option<Component>,
    /// Round the numbers to this type: bf16, f16 or f32; `gguf` has no bf16. Without it they stay as they are, or for `gguf` and
    /// where factors are computed, in f32.
    #[arg(long, value_name = "TYPE", value_parser = crate::float_type::parse_float_type)]
    pub dtype: Option<DType>,
    /// The same as `--dtype f16`, for `gguf`.
    #[arg(long, conflicts_with = "dtype")]
    pub f16: bool,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// Checks what the declarations cannot: that the number of weights is the number of adapters.
    ///
    /// # Errors
    /// A usage error if it is not.
    pub fn check(&self) -> Result<(), clap::Error> {
        let (adapters, weights) = match &self.command {
            Command::Merge(arguments) => (arguments.adapter.len(), arguments.weights.len()),
            Command::Combine(arguments) => (arguments.adapters.len(), arguments.weights.len()),
            _ => return Ok(()),
        };
        if weights != 0 && weights != adapters {
            let reason = format!(
                "`--weights` needs one number per adapter; there are {adapters} adapters and {weights} weights"
            );
            return Err(Self::command().error(ErrorKind::WrongNumberOfValues, reason));
        }
        Ok(())
    }
}

impl NameArguments {
    /// The name map.
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
