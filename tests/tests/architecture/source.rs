//! The sources of a crate as a graph: which file uses what from which other file.
//!
//! Files are read as tokens, so comments, documentation and strings are not searched. Items under `#[cfg(test)]` are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::tokens::{Contents, read};

/// A crate's files by the paths of their modules: `ops::attention`; the root has the empty path.
pub struct Source {
    files: BTreeMap<String, File>,
}

/// One file of a crate.
pub struct File {
    /// Where it is, from the folder `src`.
    pub relative: PathBuf,
    pub contents: Contents,
}

/// A use of something in another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The module of the file that has it.
    pub target: String,
    /// The path as it is written.
    pub written: String,
    /// Whether the file only re-exports it: a `pub use` of a name that its own code does not use.
    pub passes_on: bool,
}

/// What a path means.
enum Meaning {
    Module(String),
    /// Something that the file of this module defines.
    Item(String),
}

/// All Rust files under a folder, in order.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(rust_files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// The path of the module in a file.
fn module_of(relative: &Path) -> String {
    let mut names: Vec<String> =
        relative.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names
        .last()
        .is_some_and(|last| last == "mod" || (names.len() == 1 && (last == "lib" || last == "main")))
    {
        names.pop();
    }
    names.join("::")
}

fn child(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

impl Source {
    /// Reads the files that belong to a crate whose `src` is `folder`; files of tests are not among them.
    pub fn read(folder: &Path) -> Self {
        let text = |path: PathBuf| {
            let relative = path.strip_prefix(folder).unwrap().to_owned();
            (relative, std::fs::read_to_string(&path).unwrap())
        };
        Self::of(rust_files(folder).into_iter().map(text))
    }

    /// A crate whose files have these texts.
    pub fn of(texts: impl IntoIterator<Item = (PathBuf, String)>) -> Self {
        let file = |(relative, text): (PathBuf, String)| {
            let contents = read(&text);
            (module_of(&relative), File { relative, contents })
        };
        let mut all: BTreeMap<String, File> = texts.into_iter().map(file).collect();
        let mut files = BTreeMap::new();
        let mut next = vec![String::new()];
        while let Some(module) = next.pop() {
            let Some(file) = all.remove(&module) else { continue };
            next.extend(file.contents.children.iter().map(|name| child(&module, name)));
            files.insert(module, file);
        }
        Self { files }
    }

    /// The files with the paths of their modules, in order.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(module, file)| (module.as_str(), file))
    }

    /// Whether there is a module of this path.
    pub fn has_module(&self, module: &str) -> bool {
        self.files.contains_key(module)
    }

    /// What the file of `module` uses from other files.
    pub fn uses(&self, module: &str) -> BTreeSet<Use> {
        let contents = &self.files[module].contents;
        let mut uses = BTreeSet::new();
        let mut add = |path: &[String], passes_on: bool| {
            let meaning = self.resolve(module, path, 0);
            let Some(Meaning::Module(target) | Meaning::Item(target)) = meaning else { return };
            if target != module {
                uses.insert(Use { target, written: path.join("::"), passes_on });
            }
        };
        for import in &contents.imports {
            let in_code = import.name.as_ref().is_some_and(|name| contents.words.contains(name));
            add(&import.path, import.public && !in_code);
        }
        for path in &contents.paths {
            add(path, false);
        }
        uses
    }

    /// What `path` means in the file of `module`; `None` if it leads out of the crate or is a local name.
    fn resolve(&self, module: &str, path: &[String], depth: usize) -> Option<Meaning> {
        if depth > 20 {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk("", rest, depth),
            "self" => self.walk(module, rest, depth),
            "super" => {
                let mut at = parent(module);
                let mut rest = rest;
                while let Some((_, after)) = rest.split_first().filter(|(name, _)| *name == "super") {
                    (at, rest) = (parent(at), after);
                }
                self.walk(at, rest, depth)
            }
            name => {
                let contents = &self.files[module].contents;
                let imported = contents.imports.iter().any(|import| import.is_named(name));
                let known = contents.children.contains(name)
                    || imported
                    || self.by_glob(module, name, depth).is_some();
                if known { self.walk(module, path, depth + 1) } else { None }
            }
        }
    }

    /// What `path` means inside `module`.
    fn walk(&self, module: &str, path: &[String], depth: usize) -> Option<Meaning> {
        let Some((first, rest)) = path.split_first() else { return Some(Meaning::Module(module.to_owned())) };
        let inner = child(module, first);
        let contents = &self.files[module].contents;
        // A name can be a module and a function; if more follows, it is the module.
        if self.files.contains_key(&inner) && (!rest.is_empty() || !contents.defined.contains(first)) {
            return self.walk(&inner, rest, depth);
        }
        if contents.defined.contains(first) {
            return Some(Meaning::Item(module.to_owned()));
        }
        if let Some(import) = contents.imports.iter().find(|import| import.is_named(first)) {
            return match self.resolve(module, &import.path, depth + 1)? {
                Meaning::Module(target) => self.walk(&target, rest, depth + 1),
                item => Some(item),
            };
        }
        if let Some(target) = self.by_glob(module, first, depth) {
            return self.walk(&target, path, depth + 1);
        }
        Some(Meaning::Item(module.to_owned()))
    }

    /// The module that a `use …::*` in the file of `module` takes `name` from.
    fn by_glob(&self, module: &str, name: &str, depth: usize) -> Option<String> {
        let globs = self.files[module].contents.imports.iter().filter(|import| import.name.is_none());
        let mut targets = globs.filter_map(|glob| match self.resolve(module, &glob.path, depth + 1)? {
            Meaning::Module(target) => Some(target),
            Meaning::Item(_) => None,
        });
        targets.find(|target| self.offers(target, name))
    }

    fn offers(&self, module: &str, name: &str) -> bool {
        let contents = &self.files[module].contents;
        contents.defined.contains(name)
            || contents.children.contains(name)
            || contents.imports.iter().any(|import| import.is_named(name))
    }

    /// The cycles of files that use each other, and of folders inside one folder: each module with its path to the next.
    pub fn cycles(&self) -> Vec<Vec<(String, String)>> {
        let files = |module: &str| module.to_owned();
        let mut cycles = cycles(&self.graph("", files));
        let folders: BTreeSet<&str> = self.files.keys().map(|module| parent(module)).collect();
        for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
            let in_folder = |module: &str| {
                let rest = module.strip_prefix(folder).and_then(|rest| rest.strip_prefix("::"));
                let name = rest.and_then(|rest| rest.split("::").next());
                name.map_or_else(|| folder.to_owned(), |name| child(folder, name))
            };
            cycles.extend(self::cycles(&self.graph(folder, in_folder)));
        }
        cycles.sort();
        cycles.dedup();
        cycles
    }

    /// Who uses whom among the files inside `folder`, and by which path; `node` returns the node that a module belongs to.
    fn graph(&self, folder: &str, node: impl Fn(&str) -> String) -> Graph {
        let is_inside = |module: &str| {
            let inner = if folder.is_empty() { Some("::") } else { module.strip_prefix(folder) };
            !module.is_empty() && inner.is_some_and(|rest| rest.starts_with("::"))
        };
        let mut graph = Graph::new();
        for (module, _) in self.files().filter(|(module, _)| is_inside(module)) {
            let uses =
                self.uses(module).into_iter().filter(|used| !used.passes_on && is_inside(&used.target));
            for used in uses.filter(|used| node(&used.target) != node(module)) {
                graph.entry(node(module)).or_default().insert(node(&used.target), used.written);
            }
        }
        graph
    }
}

/// Modules with those that they use, and the path in the source that says so.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// The shortest cycle through each node, each cycle once.
fn cycles(graph: &Graph) -> Vec<Vec<(String, String)>> {
    let mut cycles = Vec::new();
    let mut known = BTreeSet::new();
    for start in graph.keys() {
        let Some(cycle) = shortest_cycle(graph, start) else { continue };
        let members: BTreeSet<String> = cycle.iter().map(|(module, _)| module.clone()).collect();
        if known.insert(members) {
            cycles.push(cycle);
        }
    }
    cycles
}

/// The shortest path from `start` back to itself.
fn shortest_cycle(graph: &Graph, start: &str) -> Option<Vec<(String, String)>> {
    let mut from: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    let mut next = std::collections::VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for (target, written) in graph.get(at).into_iter().flatten() {
            if target == start {
                let mut cycle = vec![(at.to_owned(), written.clone())];
                let mut back = at;
                while let Some((before, written)) = from.get(back).filter(|_| back != start) {
                    cycle.push(((*before).to_owned(), (*written).to_owned()));
                    back = before;
                }
                cycle.reverse();
                return Some(cycle);
            }
            if !from.contains_key(target.as_str()) {
                from.insert(target, (at, written));
                next.push_back(target);
            }
        }
    }
    None
}
