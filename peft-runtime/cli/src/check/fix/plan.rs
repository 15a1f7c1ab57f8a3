//! What has to be done to an adapter so that a program takes it, or why nothing helps.

use super::request::Request;
use crate::check::arguments::ProgramName;
use crate::check::feature::Feature;
use crate::check::features::{self, Found};
use crate::check::verdict::Finding;
use crate::failure::Failure;

/// What is done, in this order.
#[derive(Debug, Default)]
pub struct Plan {
    /// What else the adapter has goes if it is what the base model has.
    pub drops_unchanged: bool,
    /// The factors become those of plain LoRA.
    pub plain: bool,
    /// The factors get one rank.
    pub one_rank: bool,
    /// What is done, in words.
    pub words: Vec<String>,
}

/// What helps.
enum Cure {
    Rewrite(&'static str),
    Plain(&'static str),
    OneRank(&'static str),
    DropUnchanged,
    /// Nothing, and what to do.
    None(&'static str),
}

impl Plan {
    /// What has to be done.
    pub fn of(request: &Request<'_>) -> Result<Self, Failure> {
        let mut plan = Self::default();
        let mut hopeless = Vec::new();
        let mut findings: Vec<&Finding> =
            request.verdict.refused.iter().chain(&request.verdict.ignored).collect();
        let found = features::find(request.adapter);
        let for_mlx = request.arguments.program == Some(ProgramName::Mlx);
        // What the refused format hides.
        let hidden: Vec<Finding> =
            if for_mlx { mlx_findings(&found) } else { request.verdict.hidden.clone() };
        findings.extend(&hidden);
        for finding in findings {
            match cure(finding.feature, request) {
                Cure::Rewrite(words) => plan.add(words),
                Cure::Plain(words) => {
                    plan.plain = true;
                    plan.add(words);
                }
                Cure::OneRank(words) => {
                    plan.one_rank = true;
                    plan.add(words);
                }
                Cure::DropUnchanged => plan.drops_unchanged = true,
                Cure::None(advice) => hopeless.push((finding, advice)),
            }
        }
        match (request.verdict.base.as_slice(), request.names) {
            ([], _) => {}
            ([_], Some(_)) => {
                plan.one_rank = true;
                plan.add("the paths of modules as the base model has them");
            }
            (misfits, _) => {
                return Err(Failure::new(
                    format!("cannot make an adapter that fits the base model: {}", misfits.join("; ")),
                    "check that the adapter was trained on this base model",
                ));
            }
        }
        if let Some((_, advice)) = hopeless.first() {
            let all: Vec<String> =
                hopeless.iter().map(|(finding, _)| format!("{} ({})", finding.found, finding.why)).collect();
            let (found, program) = (all.join("; "), request.verdict.program);
            return Err(Failure::new(
                format!("no adapter that `{program}` takes computes the same as this one: {found}"),
                advice,
            ));
        }
        // Of these, only mistral.rs and PEFT know ranks that differ from module to module.
        let for_gguf = request.arguments.program == Some(ProgramName::LlamaCpp) && request.is_gguf();
        let for_vllm = request.arguments.program == Some(ProgramName::Vllm) && plan.plain;
        plan.one_rank = plan.one_rank || for_mlx || for_gguf || for_vllm;
        Ok(plan)
    }

    fn add(&mut self, words: &str) {
        if !self.words.iter().any(|known| known == words) {
            self.words.push(words.to_owned());
        }
    }
}

/// What mlx-lm's format cannot hold, of what was found in a folder of PEFT's.
fn mlx_findings(found: &[Found]) -> Vec<Finding> {
    let holds = |feature: Feature| {
        matches!(
            feature,
            Feature::Lora
                | Feature::Dora
                | Feature::PeftFolder
                | Feature::Pickle
                | Feature::OtherFileName
                | Feature::Mlx
                | Feature::Gguf
                | Feature::ImageFile
                | Feature::Embedding
                | Feature::Head
                | Feature::FanInFanOut
        )
    };
    let others = found.iter().filter(|found| !holds(found.feature));
    others
        .map(|found| Finding {
            feature: found.feature,
            found: found.what.clone(),
            why: "mlx-lm's format does not have it".to_owned(),
            source: "mlx_lm/tuner/utils.py 0.32.0, `load_adapters`",
            tensors: found.tensors.clone(),
        })
        .collect()
}

/// What helps against a finding.
fn cure(feature: Feature, request: &Request<'_>) -> Cure {
    const MERGE: &str = "merge the adapter into the base model with `peft merge`";
    let is_loftq = request.adapter.field("init_lora_weights").is_some_and(|init| init == "loftq");
    match feature {
        Feature::Pickle | Feature::OtherFileName | Feature::Mlx | Feature::Gguf | Feature::ImageFile => {
            Cure::Rewrite("the files that the program reads")
        }
        Feature::PeftFolder => Cure::Rewrite("the files that the program reads"),
        Feature::NoPrefix
        | Feature::NestedPrefix
        | Feature::WrapperPrefix
        | Feature::AdapterName
        | Feature::RenamedCopies
        | Feature::OtherAdapterName => Cure::Rewrite("keys as PEFT writes them"),
        Feature::NullPatterns | Feature::NullBias => Cure::Rewrite("a config without fields that are null"),
        Feature::MissingCopies if request.arguments.program != Some(ProgramName::Peft) => Cure::DropUnchanged,
        Feature::RescaledExperts => Cure::None(
            "rewrite it with `peft convert --to peft` and `--base`, which fuses the experts with their own scaling",
        ),
        Feature::AdaLora => Cure::Plain("plain LoRA, with the singular values in A"),
        Feature::RsLora | Feature::AlphaPattern => Cure::Plain("the scaling of each module in its B, as f32"),
        Feature::MixedRanks => Cure::OneRank("one rank for all modules, the factors padded with zeros"),
        Feature::InitFoundAgain if is_loftq => Cure::None(
            "what LoftQ took out is not of low rank; merge the adapter into its own base model with Python PEFT",
        ),
        Feature::InitFoundAgain if request.arguments.base.is_empty() => Cure::None(
            "give the original base model with `--base`: what the init took out of its weights is found there",
        ),
        Feature::InitFoundAgain => {
            Cure::Plain("plain LoRA of twice the rank, for the base weights as they were")
        }
        Feature::InitRandomised | Feature::InitCorda | Feature::InitLoraGa => Cure::None(
            "what the init took out cannot be found again; let PEFT convert the adapter where it was trained, with `path_initial_model_for_weight_conversion`",
        ),
        Feature::FullCopies
        | Feature::NormCopies
        | Feature::BaseBias
        | Feature::SavedWeights
        | Feature::SavedEmbeddings
        | Feature::LoraBias => Cure::DropUnchanged,
        Feature::LargeRank => {
            Cure::None("start the program with a larger limit, and say so with `--max-rank`")
        }
        Feature::Strangers
        | Feature::HalfPairs
        | Feature::Inconsistent
        | Feature::NotFloat
        | Feature::MissingCopies
        | Feature::MissingTokens
        | Feature::MissingParts
        | Feature::Undeclared => Cure::None("save the adapter again where it was trained"),
        Feature::UnusableSizes | Feature::UnusableFields | Feature::Untargeted | Feature::NoTargets => {
            Cure::None("correct the config: it is not that of these tensors")
        }
        Feature::UnknownMethod | Feature::OtherMethod => Cure::None("merge the adapter with Python PEFT"),
        _ => Cure::None(MERGE),
    }
}
