use finetune::{Result, continue_text, open};
use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, prompt] = arguments.as_slice() else { return Err("usage: merge NAME PROMPT".into()) };

    let adapter = StoredAdapter::open(format!("adapters/{name}"))?;
    let merged = MergedWeights::new(ModelWeights::open("smollm2")?).add(adapter, 1.0)?;
    let report = merged.write("merged", &mut |_| ())?;
    println!("merged {name} into {} of {} tensors", report.changed, report.tensors);

    let (model, tokenizer) = open("merged")?;
    println!("{prompt}{}", continue_text(&model, &tokenizer, prompt)?);
    Ok(())
}
