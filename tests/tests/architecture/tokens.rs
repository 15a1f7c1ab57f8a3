//! One file as tokens: its imports, the paths in its code, and what it defines.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What a file has outside `#[cfg(test)]`.
#[derive(Default)]
pub struct Contents {
    /// The modules that have files of their own.
    pub children: BTreeSet<String>,
    pub imports: Vec<Import>,
    /// Paths of two names or more, outside `use`.
    pub paths: BTreeSet<Vec<String>>,
    /// All names outside `use`, without those of fields and methods.
    pub words: BTreeSet<String>,
    /// The text literals, without those of documentation and other attributes.
    pub literals: BTreeSet<String>,
    /// The items of the file's own module.
    pub defined: BTreeSet<String>,
}

/// One name that a `use` brings into scope.
pub struct Import {
    pub path: Vec<String>,
    /// `None` if it stands for all names of a module.
    pub name: Option<String>,
    pub public: bool,
}

impl Import {
    pub fn is_named(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }
}

/// Reads the text of a file.
pub fn read(text: &str) -> Contents {
    let tokens: TokenStream = text.parse().unwrap();
    let mut contents = Contents::default();
    contents.walk(tokens, true);
    contents
}

const ITEMS: [&str; 9] = ["const", "enum", "fn", "macro_rules", "static", "struct", "trait", "type", "union"];

fn word(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

/// Whether an attribute's contents restrict an item to tests.
fn is_for_tests(attribute: &TokenStream) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("cfg(test") || text.starts_with("cfg(all(test") || text.starts_with("cfg(doctest")
}

/// The position after the item at `at`.
fn behind_item(tokens: &[TokenTree], at: usize) -> usize {
    let is_use = tokens[at..].iter().take(3).any(|token| word(Some(token)).is_some_and(|word| word == "use"));
    for (position, token) in tokens.iter().enumerate().skip(at) {
        let ends = match token {
            TokenTree::Group(group) => !is_use && group.delimiter() == Delimiter::Brace,
            token => is_punct(Some(token), ';'),
        };
        if ends {
            return position + 1;
        }
    }
    tokens.len()
}

impl Contents {
    fn walk(&mut self, tokens: TokenStream, top: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = self.step(&tokens, at, top);
        }
    }

    /// Reads what begins at `at`; returns where it ends.
    fn step(&mut self, tokens: &[TokenTree], at: usize, top: bool) -> usize {
        match &tokens[at] {
            TokenTree::Punct(punct) if punct.as_char() == '#' => attribute(tokens, at),
            // `pub(in crate::a)` uses nothing.
            TokenTree::Group(group)
                if word(group.stream().into_iter().next().as_ref()).as_deref() == Some("in") =>
            {
                at + 1
            }
            TokenTree::Group(group) => {
                self.walk(group.stream(), false);
                at + 1
            }
            TokenTree::Literal(literal) => {
                self.literals.insert(literal.to_string());
                at + 1
            }
            TokenTree::Ident(ident) => self.named(&ident.to_string(), tokens, at, top),
            TokenTree::Punct(_) => at + 1,
        }
    }

    /// Reads what begins with a name or keyword.
    fn named(&mut self, name: &str, tokens: &[TokenTree], at: usize, top: bool) -> usize {
        if name == "use" {
            let end = (at..tokens.len()).find(|at| is_punct(tokens.get(*at), ';')).unwrap_or(tokens.len());
            self.use_tree(&tokens[at + 1..end], &[], is_public(tokens, at));
            return end + 1;
        }
        if top && name == "mod" {
            let child = word(tokens.get(at + 1)).unwrap();
            // A module in braces is for tests only, or it is one of the root.
            if is_punct(tokens.get(at + 2), ';') {
                self.children.insert(child);
            }
            return at + 3;
        }
        if top && ITEMS.contains(&name) {
            let skip = usize::from(name == "macro_rules");
            self.defined.extend(word(tokens.get(at + 1 + skip)));
            return at + 2 + skip;
        }
        let is_member = at > 0 && is_punct(tokens.get(at - 1), '.');
        let after_colons = at > 1 && is_colons(tokens, at - 2);
        let mut path = vec![name.to_owned()];
        let mut end = at + 1;
        while is_colons(tokens, end) {
            let Some(next) = word(tokens.get(end + 2)) else { break };
            path.push(next);
            end += 3;
        }
        if !is_member && !after_colons {
            self.words.insert(name.to_owned());
            if path.len() > 1 {
                self.paths.insert(path);
            }
        }
        end
    }

    /// Adds what a `use` brings into scope; `start` is the path before the tokens.
    fn use_tree(&mut self, tokens: &[TokenTree], start: &[String], public: bool) {
        let mut path = start.to_vec();
        let mut name = None;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) if ident == "as" => {
                    name = word(tokens.get(at + 1));
                    break;
                }
                TokenTree::Ident(ident) if ident == "self" && !path.is_empty() => {}
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for part in
                        inner.split(|token| is_punct(Some(token), ',')).filter(|part| !part.is_empty())
                    {
                        self.use_tree(part, &path, public);
                    }
                    return;
                }
                token if is_punct(Some(token), '*') => {
                    self.imports.push(Import { path, name: None, public });
                    return;
                }
                _ => {}
            }
        }
        let name = name.or_else(|| path.last().cloned());
        self.imports.push(Import { path, name, public });
    }
}

/// The position after an attribute, and after its item if that is for tests.
fn attribute(tokens: &[TokenTree], at: usize) -> usize {
    let group = if is_punct(tokens.get(at + 1), '!') { at + 2 } else { at + 1 };
    match tokens.get(group) {
        Some(TokenTree::Group(attribute)) if attribute.delimiter() == Delimiter::Bracket => {
            if is_for_tests(&attribute.stream()) { behind_item(tokens, group + 1) } else { group + 1 }
        }
        _ => at + 1,
    }
}

/// Whether `pub` or `pub(…)` stands before the keyword at `at`.
fn is_public(tokens: &[TokenTree], at: usize) -> bool {
    let is_pub = |at: Option<usize>| at.and_then(|at| word(tokens.get(at))).is_some_and(|word| word == "pub");
    is_pub(at.checked_sub(1)) || is_pub(at.checked_sub(2))
}
