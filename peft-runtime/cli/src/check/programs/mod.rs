//! How programs treat what is in an adapter: a table for each of them, with the file and the version that says so.

mod llama_cpp;
mod mistralrs;
mod mlx;
mod peft;
mod table;
mod vllm;

pub use table::{Program, Treatment};

/// All of them, in the order of the output.
pub const PROGRAMS: [&Program; 5] =
    [&peft::PROGRAM, &vllm::PROGRAM, &mistralrs::PROGRAM, &llama_cpp::PROGRAM, &mlx::PROGRAM];

#[cfg(test)]
mod tests {
    use super::{PROGRAMS, Treatment};
    use crate::check::feature::Feature;

    #[test]
    fn every_table_has_one_row_for_each_feature_with_its_source() {
        for program in PROGRAMS {
            for feature in Feature::ALL {
                let rows = program.rules.iter().filter(|rule| rule.feature == feature).count();
                let by_limit = feature == Feature::LargeRank;
                let expected = if by_limit || program.rest.is_some() { rows.min(1) } else { 1 };
                assert_eq!(rows, expected, "{}: {feature:?}", program.name);
            }
            for rule in program.rules {
                assert!(rule.source.len() > 10, "{}: {:?}", program.name, rule.feature);
                assert_eq!(
                    rule.why.is_empty(),
                    rule.treatment == Treatment::Taken,
                    "{}: {:?}",
                    program.name,
                    rule.feature
                );
            }
        }
    }
}
