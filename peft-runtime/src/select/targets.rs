//! The three ways to name modules: a list of names, a regular expression, all linear layers.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The modules that a config names, in PEFT's forms.
///
/// A list of names is the usual form; a name matches a module whose path is the name or ends with it on a segment
/// boundary. In lists given in Rust, `*` stands for one segment; such a list becomes a regular expression, which is how
/// PEFT expresses it. A string is `all-linear`, in any case, or a regular expression.
///
/// ```
/// use peft_runtime::TargetModules;
///
/// assert_eq!(TargetModules::from(["q_proj", "v_proj"]), TargetModules::names(["v_proj", "q_proj"]));
/// assert_eq!(
///     TargetModules::from(["layers.*.q_proj"]),
///     TargetModules::regex(r"(?:.*\.)?(?:layers\.[^.]+\.q_proj)")
/// );
/// assert_eq!(TargetModules::from("all-linear"), TargetModules::all_linear());
/// assert_eq!(TargetModules::from(r".*\.q_proj"), TargetModules::regex(r".*\.q_proj"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
#[non_exhaustive]
pub enum TargetModules {
    /// Names of modules, matched from the end of the path by whole segments.
    Names(BTreeSet<String>),
    /// A regular expression that has to match the whole path; look-around is allowed.
    Regex(String),
    /// Every linear layer of the model, transposed ones included.
    AllLinear,
}

/// The JSON form: a list, or a string that is a regular expression unless it says `all-linear`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "it is neither a list of names nor a string")]
enum Written {
    Names(BTreeSet<String>),
    Text(String),
}

/// The string that means all linear layers, in any case.
const ALL_LINEAR: &str = "all-linear";

impl TargetModules {
    /// A list of names.
    pub fn names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }

    /// A regular expression over whole paths.
    pub fn regex(pattern: impl Into<String>) -> Self {
        Self::Regex(pattern.into())
    }

    /// Every linear layer.
    pub fn all_linear() -> Self {
        Self::AllLinear
    }

    /// Names that may contain `*` for one segment; a single `all-linear` means all linear layers.
    pub(crate) fn from_globs<S: AsRef<str>>(globs: impl IntoIterator<Item = S>) -> Self {
        let names: BTreeSet<String> = globs.into_iter().map(|glob| glob.as_ref().to_owned()).collect();
        if names.len() == 1 && names.iter().all(|name| name.eq_ignore_ascii_case(ALL_LINEAR)) {
            return Self::AllLinear;
        }
        if !names.iter().any(|name| name.split('.').any(|segment| segment == "*")) {
            return Self::Names(names);
        }
        let alternatives: Vec<String> = names.iter().map(|name| glob_regex(name)).collect();
        Self::Regex(format!(r"(?:.*\.)?(?:{})", alternatives.join("|")))
    }

    /// Selects what any of `all` selects, as one list or one pattern.
    pub(crate) fn union(all: Vec<Self>) -> Self {
        let names = all.iter().map(|targets| match targets {
            Self::Names(names) => Some(names.iter().cloned()),
            Self::Regex(_) | Self::AllLinear => None,
        });
        if let Some(names) = names.collect::<Option<Vec<_>>>() {
            return Self::Names(names.into_iter().flatten().collect());
        }
        if all.contains(&Self::AllLinear) {
            return Self::AllLinear;
        }
        let pattern = |targets: Self| match targets {
            Self::Regex(pattern) => pattern,
            Self::Names(names) => {
                let names: Vec<String> =
                    names.iter().map(|name| fancy_regex::escape(name).into_owned()).collect();
                format!(r"(?:.*\.)?(?:{})", names.join("|"))
            }
            Self::AllLinear => String::new(),
        };
        let mut patterns: Vec<String> = all.into_iter().map(pattern).collect();
        patterns.dedup();
        match patterns.as_slice() {
            [one] => Self::Regex(one.clone()),
            many => {
                Self::Regex(many.iter().map(|pattern| format!("({pattern})")).collect::<Vec<_>>().join("|"))
            }
        }
    }

    /// The modules with exactly these paths.
    pub(crate) fn exactly<'p>(paths: impl IntoIterator<Item = &'p str>) -> Self {
        let paths: Vec<_> = paths.into_iter().map(fancy_regex::escape).collect();
        Self::Regex(paths.join("|"))
    }

    /// If both are lists of names, the names in both; otherwise `self` unchanged.
    pub(crate) fn among(self, others: &Self) -> Self {
        match (self, others) {
            (Self::Names(names), Self::Names(others)) => Self::Names(&names & others),
            (targets, _) => targets,
        }
    }

    /// Whether the list of names is empty.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }
}

/// `name` as a regular expression, with `[^.]+` for each `*` segment.
pub(crate) fn glob_regex(name: &str) -> String {
    let segments: Vec<String> = name
        .split('.')
        .map(
            |segment| {
                if segment == "*" { "[^.]+".to_owned() } else { fancy_regex::escape(segment).into_owned() }
            },
        )
        .collect();
    segments.join(r"\.")
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                write!(f, "the names [{}]", names.join(", "))
            }
            Self::Regex(pattern) => write!(f, "the pattern `{pattern}`, which has to match the whole path"),
            Self::AllLinear => f.write_str("all linear layers"),
        }
    }
}

impl From<Written> for TargetModules {
    fn from(written: Written) -> Self {
        match written {
            Written::Names(names) => Self::Names(names),
            Written::Text(text) if text.eq_ignore_ascii_case(ALL_LINEAR) => Self::AllLinear,
            Written::Text(pattern) => Self::Regex(pattern),
        }
    }
}

impl From<TargetModules> for Written {
    fn from(targets: TargetModules) -> Self {
        match targets {
            TargetModules::Names(names) => Self::Names(names),
            TargetModules::Regex(pattern) => Self::Text(pattern),
            TargetModules::AllLinear => Self::Text(ALL_LINEAR.to_owned()),
        }
    }
}

/// A string is a regular expression that has to match the whole path, unless it is `all-linear`, as in PEFT.
impl From<&str> for TargetModules {
    fn from(text: &str) -> Self {
        Written::Text(text.to_owned()).into()
    }
}

/// As from `&str`.
impl From<String> for TargetModules {
    fn from(text: String) -> Self {
        Written::Text(text).into()
    }
}

impl<S: AsRef<str>, const N: usize> From<[S; N]> for TargetModules {
    fn from(names: [S; N]) -> Self {
        Self::from_globs(names)
    }
}

impl<S: AsRef<str>> From<&[S]> for TargetModules {
    fn from(names: &[S]) -> Self {
        Self::from_globs(names)
    }
}

impl<S: AsRef<str>> From<Vec<S>> for TargetModules {
    fn from(names: Vec<S>) -> Self {
        Self::from_globs(names)
    }
}
