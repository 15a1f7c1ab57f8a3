//! Dotted module paths, as PyTorch writes them: `encoder.layer.3.attention.self.query`.

use std::fmt;

/// The place of a module in its model: names joined by dots, empty for the model itself.
///
/// ```
/// use peft_runtime::ModulePath;
///
/// let path = ModulePath::from("encoder.layer.0").join("attention.self");
/// assert_eq!(path.as_str(), "encoder.layer.0.attention.self");
/// assert_eq!(path.last(), "self");
/// assert!(path.ends_with("attention.self"));
/// assert!(!path.ends_with("tion.self"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModulePath(String);

impl ModulePath {
    /// The path of the model itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the model itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of a child; `name` may itself contain dots; an empty name gives the same path.
    #[must_use]
    pub fn join(&self, name: impl fmt::Display) -> Self {
        let mut path = self.clone();
        path.push(name);
        path
    }

    /// Appends `name` in place; returns the length that undoes this when passed to [`ModulePath::truncate`].
    pub(crate) fn push(&mut self, name: impl fmt::Display) -> usize {
        let length = self.0.len();
        let name = name.to_string();
        if !self.0.is_empty() && !name.is_empty() {
            self.0.push('.');
        }
        self.0.push_str(&name);
        length
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// The names between the dots, outermost first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.').filter(|segment| !segment.is_empty())
    }

    /// The innermost name; empty for the root.
    pub fn last(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }

    /// Whether the path is `suffix` or ends with it on a segment boundary.
    pub fn ends_with(&self, suffix: &str) -> bool {
        match self.0.strip_suffix(suffix) {
            Some(rest) => rest.is_empty() || rest.ends_with('.'),
            None => false,
        }
    }

    /// The path of `parameter` inside this module, as a state dict writes it.
    pub(crate) fn parameter(&self, parameter: &str) -> String {
        self.join(parameter).0
    }
}

impl From<&str> for ModulePath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl From<String> for ModulePath {
    fn from(path: String) -> Self {
        Self(path)
    }
}

impl AsRef<str> for ModulePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
