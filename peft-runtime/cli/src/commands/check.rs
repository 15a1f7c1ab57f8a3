//! `peft check`: which programs take an adapter.

use std::fmt::Write as _;
use std::path::Path;

use clap::ValueEnum;
use peft_runtime::{BaseWeights, ModelWeights};
use serde::Serialize;
use serde_json::Value;

use crate::check::adapter_file::AdapterFile;
use crate::check::arguments::{CheckArguments, ProgramName};
use crate::check::base_fit::{Base, Fit, compare};
use crate::check::feature::Feature;
use crate::check::features;
use crate::check::fix;
use crate::check::programs::{PROGRAMS, Program};
use crate::check::verdict::{Finding, Verdict};
use crate::failure::Failure;
use crate::files::{open_base, open_base_weights, read_model_config};
use crate::terminal::{print, print_json};

/// How many tensors a finding names.
const LISTED: usize = 5;

/// What the command prints as JSON.
#[derive(Serialize)]
struct Report {
    adapter: String,
    format: String,
    ok: bool,
    programs: Vec<Verdict>,
    notes: Vec<String>,
    /// What `--fix` wrote, with the verdict about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<Fixed>,
}

/// A repaired adapter.
#[derive(Serialize)]
struct Fixed {
    output: String,
    steps: Vec<String>,
    verdict: Verdict,
}

/// Runs the command; whether the adapter is taken.
///
/// # Errors
/// If a file cannot be read, or `--fix` cannot make an adapter that is taken.
pub fn run(arguments: &CheckArguments) -> Result<bool, Failure> {
    let base = read_base(arguments)?;
    let weights = open_base_weights(&arguments.base)?;
    let known = (base.as_ref(), weights.as_ref());
    let (adapter, verdicts, fit) = check(&arguments.adapter, arguments, known)?;
    let mut ok = match arguments.program {
        Some(_) => verdicts.iter().all(|verdict| verdict.ok),
        None => verdicts.iter().any(|verdict| verdict.ok),
    };
    let mut fixed = None;
    if let (Some(output), [verdict]) = (&arguments.fix, verdicts.as_slice()) {
        let request =
            fix::Request { adapter: &adapter, verdict, names: fit.names.as_ref(), arguments, output };
        let steps = fix::write(&request)?;
        let (_, again, _) = check(output, arguments, known)?;
        let Some(verdict) = again.into_iter().next() else { return Ok(false) };
        ok = verdict.ok;
        fixed = Some(Fixed { output: output.display().to_string(), steps, verdict });
    }
    let report = Report {
        adapter: arguments.adapter.display().to_string(),
        format: adapter.format.name(),
        ok,
        programs: verdicts,
        notes: fit.notes,
        fixed,
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(ok)
}

fn read_base(arguments: &CheckArguments) -> Result<Option<Base>, Failure> {
    let Some(first) = arguments.base.first() else { return Ok(None) };
    let weights: ModelWeights = open_base(&arguments.base)?;
    let folder = if first.is_dir() { first.as_path() } else { first.parent().unwrap_or(Path::new("")) };
    let config = folder.join("config.json");
    let config = if config.is_file() { read_model_config(&config)? } else { Value::Null };
    let shapes = weights.shapes().into_iter().map(|tensor| (tensor.key, tensor.shape)).collect();
    Ok(Some(Base { shapes, config }))
}

/// What the programs do with the adapter at `path`.
fn check(
    path: &Path,
    arguments: &CheckArguments,
    (base, weights): (Option<&Base>, Option<&BaseWeights>),
) -> Result<(AdapterFile, Vec<Verdict>, Fit), Failure> {
    let adapter = AdapterFile::open(path, weights)?;
    let mut found = features::find(&adapter);
    if base.is_some_and(Base::ties) {
        features::tie(&mut found);
    }
    // Other programs' files have names of their own for modules.
    let is_peft = !matches!(adapter.format, Feature::Mlx | Feature::Gguf | Feature::ImageFile);
    let fit = base.filter(|_| is_peft).map(|base| compare(&adapter, base)).unwrap_or_default();
    features::rescale(&mut found, &fit.rescaled);
    let wanted = arguments.program.and_then(|program| program.to_possible_value());
    let is_wanted =
        |program: &&&Program| wanted.as_ref().is_none_or(|wanted| wanted.get_name() == program.name);
    let verdicts = PROGRAMS
        .iter()
        .filter(is_wanted)
        .map(|program| Verdict::of(program, &adapter, &found, arguments.max_rank).with_base(&fit.misfits))
        .collect();
    Ok((adapter, verdicts, fit))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let [verdict] = report.programs.as_slice() {
        let _ = writeln!(text, "{} {}: {}", verdict.program, verdict.version, answer(verdict));
        write_details(&mut text, verdict);
    } else {
        for verdict in &report.programs {
            let name = format!("{} {}", verdict.program, verdict.version);
            let _ = writeln!(text, "{name:<36}{}", verdict.summary());
        }
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if let Some(fixed) = &report.fixed {
        let _ = writeln!(text, "\n{}: {}", fixed.output, fixed.steps.join("; "));
        let _ = writeln!(text, "checked again: {}", answer(&fixed.verdict));
        write_details(&mut text, &fixed.verdict);
    }
    text
}

fn answer(verdict: &Verdict) -> String {
    match () {
        () if verdict.ok => format!("yes, it takes the adapter and uses all {} tensors", verdict.tensors),
        () if !verdict.refused.is_empty() => "no, it refuses the adapter".to_owned(),
        () if !verdict.base.is_empty() => "no, the adapter does not fit the base model".to_owned(),
        () if verdict.tensors == 0 => "no, the adapter has no tensors".to_owned(),
        () => "not as it is meant: it loads the adapter, and computes something else".to_owned(),
    }
}

fn write_details(text: &mut String, verdict: &Verdict) {
    for (word, findings) in [("refused", &verdict.refused), ("ignored", &verdict.ignored)] {
        for Finding { found, why, source, tensors, .. } in findings {
            let _ = writeln!(text, "  {word}: {found}\n    {} {why} [{source}]", verdict.program);
            for tensor in tensors.iter().take(LISTED) {
                let _ = writeln!(text, "    {tensor}");
            }
            if tensors.len() > LISTED {
                let _ = writeln!(text, "    and {} more", tensors.len() - LISTED);
            }
        }
    }
    for misfit in &verdict.base {
        let _ = writeln!(text, "  base: {misfit}");
    }
}

impl ProgramName {
    /// Whether it is that of this program.
    #[cfg(test)]
    fn is(self, program: &Program) -> bool {
        self.to_possible_value().is_some_and(|value| value.get_name() == program.name)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::{PROGRAMS, ProgramName};

    #[test]
    fn every_name_has_a_table() {
        for name in ProgramName::value_variants() {
            assert_eq!(PROGRAMS.iter().filter(|program| name.is(program)).count(), 1, "{name:?}");
        }
        assert_eq!(PROGRAMS.len(), ProgramName::value_variants().len());
    }
}
