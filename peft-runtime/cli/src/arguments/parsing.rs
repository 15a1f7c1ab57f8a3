//! How values on the command line are read.

use peft_runtime::{CombinationType, MajoritySign};

use super::Fused;

pub(super) fn types() -> String {
    let names = CombinationType::ALL.map(CombinationType::name).join(", ");
    format!("The combination type, under PEFT's name: {names}")
}

pub(super) fn parse_type(text: &str) -> Result<CombinationType, String> {
    text.parse().map_err(|error: peft_runtime::Error| error.to_string())
}

pub(super) fn parse_sign(text: &str) -> Result<MajoritySign, String> {
    text.parse().map_err(|error: peft_runtime::Error| error.to_string())
}

pub(super) fn parse_rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) => Ok((from.to_owned(), to.to_owned())),
        None => Err("expected FROM=TO".to_owned()),
    }
}

pub(super) fn parse_fused(text: &str) -> Result<Fused, String> {
    let malformed = || "expected FROM=TO:START..END".to_owned();
    let (from, rest) = text.split_once('=').ok_or_else(malformed)?;
    let (to, rows) = rest.rsplit_once(':').ok_or_else(malformed)?;
    let (start, end) = rows.split_once("..").ok_or_else(malformed)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| malformed());
    let rows = number(start)?..number(end)?;
    if rows.is_empty() {
        return Err(format!("{start}..{end} is empty; END must be greater than START"));
    }
    Ok(Fused { from: from.to_owned(), to: to.to_owned(), rows })
}
