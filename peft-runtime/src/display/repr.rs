//! Nested text in the style of PyTorch's `repr`.

/// A module with named children, or the text of a leaf.
#[derive(Clone, Debug)]
pub(super) struct Repr {
    pub(super) head: String,
    pub(super) children: Vec<(String, Repr)>,
    /// Whether children that print alike are folded into one line, as in a list of blocks.
    pub(super) folds: bool,
}

/// The type shown for a module that has no type name here.
const UNNAMED: &str = "Module";

impl Repr {
    /// A leaf with its whole text.
    pub(super) fn leaf(text: impl Into<String>) -> Self {
        Self { head: text.into(), children: Vec::new(), folds: false }
    }

    /// A module of this type.
    pub(super) fn module(type_name: impl Into<String>) -> Self {
        Self { head: type_name.into(), children: Vec::new(), folds: false }
    }

    /// A list whose equal items fold.
    pub(super) fn list(type_name: impl Into<String>) -> Self {
        Self { folds: true, ..Self::module(type_name) }
    }

    pub(super) fn push(&mut self, name: impl Into<String>, child: Self) {
        self.children.push((name.into(), child));
    }

    /// Adds a child whose name may contain dots; missing modules in between are created.
    pub(super) fn push_at(&mut self, name: &str, child: Self) {
        match name.split_once('.') {
            None => self.push(name, child),
            Some((first, rest)) => {
                if !self.children.iter().any(|(known, _)| known == first) {
                    self.push(first, Self::module(UNNAMED));
                }
                if let Some((_, between)) = self.children.iter_mut().find(|(known, _)| known == first) {
                    between.push_at(rest, child);
                }
            }
        }
    }

    /// The text, on several lines if there are children.
    pub(super) fn text(&self) -> String {
        if self.children.is_empty() {
            return self.head.clone();
        }
        let mut lines = vec![format!("{}(", self.head)];
        let mut texts: Vec<(usize, usize, String)> = Vec::new();
        for (index, (_, child)) in self.children.iter().enumerate() {
            let text = child.text();
            match texts.last_mut() {
                Some((_, last, previous)) if self.folds && *previous == text => *last = index,
                _ => texts.push((index, index, text)),
            }
        }
        for (first, last, text) in texts {
            let name = match (self.children.get(first), self.children.get(last)) {
                (Some((from, _)), Some((to, _))) if first != last => {
                    format!("({from}-{to}): {} x ", last - first + 1)
                }
                (Some((name, _)), _) => format!("({name}): "),
                (None, _) => String::new(),
            };
            let block = format!("{name}{text}");
            lines.extend(block.lines().map(|line| format!("  {line}")));
        }
        lines.push(")".to_owned());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::Repr;

    #[test]
    fn equal_items_of_a_list_fold_and_dotted_names_nest() {
        let mut list = Repr::list("ModuleList");
        for i in 0..3 {
            let mut block = Repr::module("Block");
            block.push_at("attention.self", Repr::leaf(if i == 2 { "Other()" } else { "Linear()" }));
            list.push(i.to_string(), block);
        }
        let expected = "ModuleList(\n  (0-1): 2 x Block(\n    (attention): Module(\n      (self): Linear()\n    )\n  )\n  \
                        (2): Block(\n    (attention): Module(\n      (self): Other()\n    )\n  )\n)";
        assert_eq!(list.text(), expected);
    }
}
