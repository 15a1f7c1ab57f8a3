//! "Did you mean": the edit distance between names, for compile-time and run-time messages alike.

use super::text::{Text, equal};

/// Names longer than this are compared by their last bytes.
const LONGEST: usize = 64;
/// How many names a message offers.
pub(super) const OFFERED: usize = 5;

/// The optimal-string-alignment distance: insertions, deletions, substitutions and swaps of adjacent bytes.
pub(super) const fn distance(a: &[u8], b: &[u8]) -> usize {
    let a = tail(a);
    let b = tail(b);
    let mut before = [0; LONGEST + 1];
    let mut previous = [0; LONGEST + 1];
    let mut j = 0;
    while j <= b.len() {
        previous[j] = j;
        j += 1;
    }
    let mut i = 1;
    while i <= a.len() {
        let mut current = [0; LONGEST + 1];
        current[0] = i;
        j = 1;
        while j <= b.len() {
            let substitution = previous[j - 1] + if a[i - 1] == b[j - 1] { 0 } else { 1 };
            current[j] = min(min(previous[j] + 1, current[j - 1] + 1), substitution);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                current[j] = min(current[j], before[j - 2] + 1);
            }
            j += 1;
        }
        before = previous;
        previous = current;
        i += 1;
    }
    previous[b.len()]
}

const fn tail(name: &[u8]) -> &[u8] {
    if name.len() > LONGEST { name.split_at(name.len() - LONGEST).1 } else { name }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// Whether a name at this distance counts as a typo.
const fn is_close(word: &[u8], distance: usize) -> bool {
    distance <= word.len() / 3 + 1
}

/// The names nearest to one word, nearest first.
#[derive(Clone, Copy)]
pub(super) struct Nearest {
    names: [Text<96>; OFFERED],
    distances: [usize; OFFERED],
    count: usize,
    /// Whether more names were offered than there is room for.
    more: bool,
}

impl Nearest {
    pub(super) const fn new() -> Self {
        Self { names: [Text::new(); OFFERED], distances: [usize::MAX; OFFERED], count: 0, more: false }
    }

    /// Considers `name`; keeps the first of equally near ones.
    pub(super) const fn offer(&mut self, word: &[u8], name: Text<96>) {
        let mut i = 0;
        while i < self.count {
            if equal(self.names[i].as_bytes(), name.as_bytes()) {
                return;
            }
            i += 1;
        }
        self.more |= self.count == OFFERED;
        let distance = distance(word, name.as_bytes());
        let mut place = self.count;
        while place > 0 && self.distances[place - 1] > distance {
            if place < OFFERED {
                self.names[place] = self.names[place - 1];
                self.distances[place] = self.distances[place - 1];
            }
            place -= 1;
        }
        if place < OFFERED {
            self.names[place] = name;
            self.distances[place] = distance;
            if self.count < OFFERED {
                self.count += 1;
            }
        }
    }

    /// Appends `; did you mean …?` for near names, otherwise a few existing names; never more than [`OFFERED`].
    pub(super) const fn describe(&self, word: &[u8], message: &mut Text<1024>) {
        let mut close = 0;
        while close < self.count && is_close(word, self.distances[close]) {
            close += 1;
        }
        if self.count == 0 {
            message.push(b"; it has no layers that can carry adapters");
        } else if close > 0 {
            message.push(b"; did you mean ");
            self.list(close, b" or ", message);
            message.push(b"?");
        } else {
            let start: &[u8] = if self.more { b"; some of its layers are " } else { b"; its layers are " };
            message.push(start);
            self.list(self.count, b" and ", message);
        }
    }

    const fn list(&self, count: usize, last: &[u8], message: &mut Text<1024>) {
        let mut i = 0;
        while i < count {
            if i > 0 {
                message.push(if i + 1 == count { last } else { b", " });
            }
            message.push_quoted(self.names[i].as_bytes());
            i += 1;
        }
    }
}

/// Up to five of `names` that are near `word`, nearest first.
pub(crate) fn nearest_names<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    let mut close: Vec<(usize, &str)> = names
        .into_iter()
        .map(|name| (distance(word.as_bytes(), name.as_bytes()), name))
        .filter(|(distance, _)| is_close(word.as_bytes(), *distance))
        .collect();
    close.sort_by_key(|(distance, _)| *distance);
    let mut nearest: Vec<String> = Vec::new();
    for (_, name) in close {
        if nearest.len() < OFFERED && !nearest.iter().any(|known| known == name) {
            nearest.push(name.to_owned());
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest_names};

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(distance(b"q_proj", b"q_proj"), 0);
        assert_eq!(distance(b"q_prj", b"q_proj"), 1);
        assert_eq!(distance(b"q_porj", b"q_proj"), 1);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
    }

    #[test]
    fn the_nearest_name_comes_first_and_far_names_stay_out() {
        assert_eq!(nearest_names("q_prj", ["lm_head", "k_proj", "q_proj"]), ["q_proj", "k_proj"]);
        assert!(nearest_names("attention", ["lm_head"]).is_empty());
    }
}
