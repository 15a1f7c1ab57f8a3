//! Whether a program takes an adapter.

use serde::Serialize;

use super::adapter_file::AdapterFile;
use super::feature::Feature;
use super::features::{Found, largest_rank};
use super::programs::{Program, Treatment};

/// What a program does with something in the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    #[serde(serialize_with = "as_name")]
    pub feature: Feature,
    pub found: String,
    pub why: String,
    pub source: &'static str,
    /// The keys of the tensors that it is about.
    pub tensors: Vec<String>,
}

/// What a program does with the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub program: &'static str,
    pub version: &'static str,
    /// Whether it loads the adapter and uses all of it as PEFT does.
    pub ok: bool,
    pub refused: Vec<Finding>,
    pub ignored: Vec<Finding>,
    /// What the program would refuse or ignore in a file that it does not open.
    #[serde(skip)]
    pub hidden: Vec<Finding>,
    /// What the base model does not have as the adapter has it.
    pub base: Vec<String>,
    /// How many tensors there are.
    pub tensors: usize,
}

fn as_name<S: serde::Serializer>(feature: &Feature, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&feature.name())
}

impl Verdict {
    /// What `program` does with an adapter in which `found` was found; `limit` is the largest rank that it is started with.
    pub fn of(program: &Program, adapter: &AdapterFile, found: &[Found], limit: Option<usize>) -> Self {
        let (mut refused, mut ignored) = (Vec::new(), Vec::new());
        for found in found {
            let Some(rule) = program.rule(found.feature) else { continue };
            let finding = Finding {
                feature: found.feature,
                found: found.what.clone(),
                why: rule.why.to_owned(),
                source: rule.source,
                tensors: found.tensors.clone(),
            };
            match rule.treatment {
                Treatment::Taken => {}
                Treatment::Ignored => ignored.push(finding),
                Treatment::Refused => refused.push(finding),
            }
        }
        refused.extend(too_large(program, adapter, limit));
        let mut hidden = Vec::new();
        // What is in a file that is not opened does not matter, unless the adapter is written anew.
        if let Some(format) = refused.iter().position(|finding| finding.feature == adapter.format) {
            let format = refused.remove(format);
            hidden = std::mem::replace(&mut refused, vec![format]);
            hidden.append(&mut ignored);
        }
        let ok = refused.is_empty() && ignored.is_empty() && !adapter.tensors.is_empty();
        let tensors = adapter.tensors.len();
        Self {
            program: program.name,
            version: program.version,
            ok,
            refused,
            ignored,
            hidden,
            base: Vec::new(),
            tensors,
        }
    }

    /// The same with what a base model does not have.
    pub fn with_base(mut self, misfits: &[String]) -> Self {
        self.ok = self.ok && misfits.is_empty();
        self.base = misfits.to_vec();
        self
    }

    /// In a few words.
    pub fn summary(&self) -> String {
        let words = |findings: &[Finding]| {
            let each = findings.iter().map(|finding| finding.found.as_str());
            each.collect::<Vec<_>>().join("; ")
        };
        match () {
            () if self.ok => format!("yes, and uses all {} tensors", self.tensors),
            () if !self.refused.is_empty() => format!("no, it refuses {}", words(&self.refused)),
            () if !self.base.is_empty() => format!("no, {}", self.base[0]),
            () if self.tensors == 0 => "no, there are no tensors".to_owned(),
            () => format!("not as it is meant, it ignores {}", words(&self.ignored)),
        }
    }
}

/// The rank, if it is above what the program is started with.
fn too_large(program: &Program, adapter: &AdapterFile, limit: Option<usize>) -> Option<Finding> {
    let (rank, limits) = (largest_rank(adapter)?, program.rank?);
    let allowed = limits.largest.unwrap_or(usize::MAX).min(limit.unwrap_or(limits.default));
    if rank <= allowed {
        return None;
    }
    let option = limits.option;
    let why = match limits.largest {
        Some(largest) if rank > largest => format!("takes no rank above {largest}"),
        _ => format!(
            "is limited to {allowed}; start it with `{option} {rank}` or more, and say so with `--max-rank`"
        ),
    };
    let found = format!("rank {rank}");
    Some(Finding { feature: Feature::LargeRank, found, why, source: limits.source, tensors: Vec::new() })
}
