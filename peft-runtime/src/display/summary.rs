//! The line of trainable parameters, as PEFT prints it.

use crate::manage::count_parameters;
use crate::module::Injectable;

/// `trainable params: 1,280 || all params: 1,600 || trainable%: 80.0000`
pub(crate) fn trainable_summary<M: Injectable + ?Sized>(model: &M) -> String {
    let count = count_parameters(model);
    #[expect(clippy::cast_precision_loss, reason = "a percentage with four decimals")]
    let percentage = if count.all == 0 { 0.0 } else { 100.0 * count.trainable as f64 / count.all as f64 };
    format!(
        "trainable params: {} || all params: {} || trainable%: {percentage:.4}",
        thousands(count.trainable),
        thousands(count.all)
    )
}

/// A number with commas between groups of three digits.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_separated_by_commas() {
        let texts = [0, 7, 290, 999, 1_000, 1_280, 3_686_400, 3_089_625_088].map(thousands);
        assert_eq!(texts, ["0", "7", "290", "999", "1,000", "1,280", "3,686,400", "3,089,625,088"]);
    }
}
