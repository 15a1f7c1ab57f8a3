//! The command line of `peft check`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The arguments of `peft check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The adapter: its folder, or its file.
    pub adapter: PathBuf,
    /// The program that is to use the adapter; all of them by default, with a line for each.
    #[arg(long = "for", value_enum, value_name = "PROGRAM")]
    pub program: Option<ProgramName>,
    /// The base model: its modules are compared with those of the adapter, names and shapes.
    #[arg(long, num_args = 1.., value_name = "DIR|FILE")]
    pub base: Vec<PathBuf>,
    /// The largest rank that vLLM (`--max-lora-rank`) or mistral.rs (`--lora-max-rank`) is started with; by default 16 and 256.
    #[arg(long, value_name = "RANK")]
    pub max_rank: Option<usize>,
    /// Write an adapter that the program takes and that computes the same, if there is one. It is checked as well.
    #[arg(long, value_name = "DIR|FILE", requires = "program")]
    pub fix: Option<PathBuf>,
    /// Replace what `--fix` writes if it exists.
    #[arg(long, requires = "fix")]
    pub force: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The programs that `peft check` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgramName {
    /// Python PEFT.
    Peft,
    /// vLLM.
    Vllm,
    /// mistral.rs.
    Mistralrs,
    /// llama.cpp, with its converter.
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// mlx-lm.
    Mlx,
}
