use clap::{CommandFactory, Parser};

use super::parsing::parse_fused;
use super::{Arguments, Command, Fused};

#[test]
fn the_declarations_are_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn weights_may_be_negative_and_each_adapter_needs_one() {
    let parse = |weights: &[&str]| {
        let merge = ["peft", "merge", "--base", "base", "--adapter", "a", "b", "-o", "out", "--weights"];
        Arguments::try_parse_from(merge.iter().chain(weights)).unwrap()
    };
    let arguments = parse(&["-0.5", "1e-1"]);
    assert!(arguments.check().is_ok());
    let Command::Merge(merge) = arguments.command else { panic!("not merge") };
    assert_eq!(merge.weights, [-0.5, 0.1]);
    assert!(parse(&["1", "2", "3"]).check().is_err());
}

#[test]
fn parts_of_fused_modules_are_parsed() {
    let fused = Fused { from: "q_proj".to_owned(), to: "qkv".to_owned(), rows: 0..64 };
    assert_eq!(parse_fused("q_proj=qkv:0..64"), Ok(fused));
    for wrong in ["q_proj", "q=qkv", "q=qkv:1", "q=qkv:a..b", "q=qkv:4..4"] {
        assert!(parse_fused(wrong).is_err(), "{wrong}");
    }
}
