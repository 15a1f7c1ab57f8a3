//! What the output layer that is tied to an embedding gets.

use super::planner::Planner;
use super::tie::{FIELD, Tie};
use crate::adapter::Shared;
use crate::error::Fault;
use crate::inject::plan::PlannedContent;

impl Planner<'_> {
    /// Plans what the tied output layer gets, once the embedding's part is known.
    pub(super) fn choose_tied(&mut self) {
        let Some(Tie { embedding, head, shared }) = self.tie.clone() else { return };
        let wrong = |reason: String| Fault::Config { field: FIELD, reason };
        let content = match (shared, self.contents.get(&embedding)) {
            (Shared::Adapter, Some(PlannedContent::Adapter(_))) => {
                let Some((_, layer)) = self.carriers().find(|(path, _)| **path == head) else { return };
                match self.method.plan_layer(&head, layer.kind(), &layer.geometry()) {
                    Ok(settings) => PlannedContent::TiedAdapter(embedding, settings.scaling),
                    Err(fault) => return self.note(fault),
                }
            }
            (Shared::Copy, Some(PlannedContent::Copy)) => PlannedContent::TiedCopy(embedding),
            _ => {
                let reason = format!("`{head}` gets what `{embedding}` gets, which other fields rule out");
                return self.faults.push(wrong(reason));
            }
        };
        if self.contents.contains_key(&head) {
            let reason = format!("`{head}` gets a copy, and is one of the targets as well");
            self.faults.push(wrong(reason));
        }
        self.contents.insert(head, content);
    }
}
