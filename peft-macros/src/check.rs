//! Rules that involve more than one attribute or field.

use proc_macro2::Span;

use crate::ast::{Body, Field, Input};
use crate::attr::LoraAttr;
use crate::diag::Diagnostics;
use crate::value::name_fault;

pub(crate) fn check(input: &Input<'_>, diagnostics: &mut Diagnostics) {
    match &input.body {
        Body::Union(span) => {
            diagnostics.error(*span, "a union cannot be visited; derive `Injectable` on a struct or enum");
        }
        Body::Struct(fields) => {
            check_fields(fields, diagnostics);
            check_transparent(input, fields, diagnostics);
        }
        Body::Enum(variants) => {
            for variant in variants {
                check_fields(&variant.fields, diagnostics);
            }
            if let Some(span) = input.attrs.transparent {
                let message = "`transparent` belongs on a struct; a variant with one unnamed field is already transparent";
                diagnostics.error(span, message);
            }
        }
    }
    check_recursion(input, diagnostics);
    check_targets(input, diagnostics);
    if let Some(lora) = &input.attrs.lora {
        if input.attrs.targets.is_empty() {
            diagnostics.error(lora.span, "`lora(…)` has nothing to adapt; add `target = \"…\"`");
        }
        check_lora(&lora.value, lora.span, diagnostics);
    }
}

/// The schema of a type that contains itself would be infinite. Only the type's unqualified name or `Self` is found
/// here.
fn check_recursion(input: &Input<'_>, diagnostics: &mut Diagnostics) {
    let own = &input.original.ident;
    for field in input.all_fields().into_iter().filter(|field| field.is_visited()) {
        if let Some(span) = field.ty.named(own) {
            let message = format!(
                "`{own}` contains itself, so its schema would be infinite; mark the field `#[peft(skip)]`"
            );
            diagnostics.error(span, message);
        }
    }
}

fn check_fields(fields: &[Field], diagnostics: &mut Diagnostics) {
    let mut named: Vec<(&Field, String)> = Vec::new();
    for field in fields {
        check_conflicts(field, diagnostics);
        if let Some(rename) = &field.attrs.rename
            && let Some(fault) = name_fault(&rename.value(), false)
        {
            diagnostics.error(rename.span(), fault);
        }
        if !field.is_visited() || field.attrs.flatten.is_some() {
            continue;
        }
        let segment = field.segment();
        if let Some((first, _)) = named.iter().find(|(_, known)| *known == segment) {
            diagnostics.error(
                field.segment_span(),
                format!("two fields are called `{segment}`; rename one of them"),
            );
            diagnostics.error(first.segment_span(), format!("the name `{segment}` is first used here"));
        }
        named.push((field, segment));
    }
}

fn check_conflicts(field: &Field, diagnostics: &mut Diagnostics) {
    let attrs = &field.attrs;
    if let Some(skip) = attrs.skip {
        let others = [
            ("rename", attrs.rename.is_some()),
            ("flatten", attrs.flatten.is_some()),
            ("rank", attrs.rank.is_some()),
            ("blocks", attrs.blocks.is_some()),
        ];
        for (word, _) in others.iter().filter(|(_, present)| *present) {
            diagnostics.error(skip, format!("`skip` and `{word}` exclude each other; remove one of them"));
        }
    } else if let Some(flatten) = attrs.flatten {
        if attrs.rename.is_some() {
            diagnostics.error(flatten, "`flatten` leaves no name to give; remove `rename` or `flatten`");
        }
        if attrs.rank.is_some() {
            diagnostics.error(flatten, "`rank` belongs on a layer; remove `rank` or `flatten`");
        }
        if attrs.blocks.is_some() {
            diagnostics
                .error(flatten, "a flattened field is not a list of blocks; remove `blocks` or `flatten`");
        }
    }
    if let Some(rank) = attrs.rank.filter(|rank| rank.value == 0) {
        diagnostics.error(rank.span, "the rank is 0; it must be at least 1");
    }
}

fn check_transparent(input: &Input<'_>, fields: &[Field], diagnostics: &mut Diagnostics) {
    let Some(span) = input.attrs.transparent else { return };
    let visited: Vec<&Field> = fields.iter().filter(|field| field.is_visited()).collect();
    if let [field] = visited.as_slice() {
        if let Some(rename) = &field.attrs.rename {
            diagnostics
                .error(rename.span(), "the field of a transparent struct has no name; remove `rename`");
        }
    } else {
        let count = visited.len();
        let message =
            format!("`transparent` needs exactly one field that is not skipped, but there are {count}");
        diagnostics.error(span, message);
    }
}

fn check_targets(input: &Input<'_>, diagnostics: &mut Diagnostics) {
    let attrs = &input.attrs;
    let embeddings = attrs.input_embedding.iter().chain(&attrs.output_embedding);
    for target in attrs.targets.iter().chain(&attrs.feedforward).chain(embeddings) {
        if let Some(fault) = name_fault(&target.value(), true) {
            diagnostics.error(target.span(), fault);
        }
    }
    for (i, target) in attrs.targets.iter().enumerate() {
        if attrs.targets[..i].iter().any(|known| known.value() == target.value()) {
            diagnostics.error(
                target.span(),
                format!("`{}` is already a target; remove one of them", target.value()),
            );
        }
    }
    for name in &attrs.feedforward {
        if !attrs.targets.iter().any(|target| target.value() == name.value()) {
            let name = (name.span(), name.value());
            diagnostics
                .error(name.0, format!("feedforward `{0}` is not a target; add `target = \"{0}\"`", name.1));
        }
    }
}

fn check_lora(lora: &LoraAttr, span: Span, diagnostics: &mut Diagnostics) {
    match lora.rank {
        None => diagnostics.error(span, "`lora(…)` needs a rank; add `rank = 8`"),
        Some(rank) if rank.value == 0 => diagnostics.error(rank.span, "the rank is 0; it must be at least 1"),
        Some(_) => {}
    }
    if let Some(dropout) = lora.dropout.filter(|dropout| !(0.0..1.0).contains(&dropout.value)) {
        let value = dropout.value;
        let message = format!("the probability is {value}; it must be at least 0 and below 1");
        diagnostics.error(dropout.span, message);
    }
    if let Some(alpha) = lora.alpha.filter(|alpha| !alpha.value.is_finite()) {
        diagnostics.error(alpha.span, "alpha must be a finite number");
    }
    if let Some(bias) = &lora.bias
        && !matches!(bias.value().as_str(), "none" | "all" | "lora_only")
    {
        diagnostics.error(bias.span(), "expected \"none\", \"all\" or \"lora_only\"");
    }
}
