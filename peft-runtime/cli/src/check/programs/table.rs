//! What a table about a program is made of.

use crate::check::feature::Feature;

/// What a program does with a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It computes what PEFT computes.
    Taken,
    /// It loads the adapter and computes something else, without an error.
    Ignored,
    /// It does not load the adapter.
    Refused,
}

/// A row of a table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub feature: Feature,
    pub treatment: Treatment,
    /// What the program does, or what its format lacks; empty where it takes the feature.
    pub why: &'static str,
    /// The file of the program, or the issue, that says so.
    pub source: &'static str,
}

/// The largest rank that a program takes.
#[derive(Clone, Copy, Debug)]
pub struct RankLimit {
    /// The option of the program that sets it.
    pub option: &'static str,
    /// What it is without the option.
    pub default: usize,
    /// The largest value of the option, if there is one.
    pub largest: Option<usize>,
    pub source: &'static str,
}

/// A program that reads adapters.
#[derive(Debug)]
pub struct Program {
    /// Its name on the command line.
    pub name: &'static str,
    /// The version that the table is about.
    pub version: &'static str,
    pub rules: &'static [Rule],
    /// Why it refuses what has no row, for a program that reads only files of its own.
    pub rest: Option<&'static str>,
    pub rank: Option<RankLimit>,
}

pub const fn taken(feature: Feature, source: &'static str) -> Rule {
    Rule { feature, treatment: Treatment::Taken, why: "", source }
}

pub const fn ignored(feature: Feature, why: &'static str, source: &'static str) -> Rule {
    Rule { feature, treatment: Treatment::Ignored, why, source }
}

pub const fn refused(feature: Feature, why: &'static str, source: &'static str) -> Rule {
    Rule { feature, treatment: Treatment::Refused, why, source }
}

impl Program {
    /// What it does with a feature.
    pub fn rule(&self, feature: Feature) -> Option<Rule> {
        let row = self.rules.iter().find(|rule| rule.feature == feature).copied();
        row.or_else(|| Some(refused(feature, self.rest?, self.rules.first()?.source)))
    }
}
