//! Readers of files and texts on damaged input: sound files and texts with changes that a seed decides.
//!
//! Every run tries the same inputs. `PEFT_FUZZ_INPUTS` is how many each test tries, `PEFT_FUZZ_SEED` the first seed; a failure
//! names both for its input.

mod harness;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use harness::{check_after, fuzz, state};
use peft_runtime::PeftConfig;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_tests::attacks::RunFiles;
use peft_tests::attacks::build::{CONFIG, Gguf, WEIGHTS, sound_adapter};
use peft_tests::memory::CountingAllocator;
use peft_tests::mutate::{Chance, mutate, mutate_text};
use peft_tests::tensors::bits;
use peft_tests::training::{Method, Mlp, trainer};
use peft_tests::victim::{LONG_NAME, Variant, Victim};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Sound configs of every method and of many settings.
fn configs() -> Vec<String> {
    let lora = || LoraConfig::new(2, 4.0).with_targets(["lin0", "lin1"]);
    let loras = [
        lora(),
        lora().with_rank_pattern([("lin0", 3), (r"lin\d", 4)]).with_alpha_pattern([("lin1", 2.5)]),
        lora().with_dora(true).with_rslora(true).with_dropout(0.1),
        lora().with_lora_bias(true).with_bias(Bias::LoraOnly),
        lora().with_init(LoraInit::Pissa),
        lora().with_init(LoraInit::PissaIterations(4)),
        lora().with_init(LoraInit::Olora),
        lora().with_init(LoraInit::Orthogonal),
        lora().with_eva(EvaConfig::default()),
        lora().with_trainable_tokens([("embed", vec![1, 3])]).with_modules_to_save(["long"]),
        lora().with_layer_replication([0..2, 1..2]),
        LoraConfig::new(4, 8.0).with_targets(TargetModules::regex(r".*lin\d$")),
        LoraConfig::new(4, 8.0).with_targets(TargetModules::all_linear()).with_exclude_modules(["lin0"]),
    ];
    let adalora = AdaLoraConfig::new(4, 2, 20).with_schedule(2, 4, 1).with_targets(["lin0"]);
    let ia3 = Ia3Config::new().with_targets(["lin0", "lin1"]).with_feedforward(["lin1"]);
    let mut texts: Vec<String> = loras.iter().map(|config| config.to_json().unwrap()).collect();
    texts.push(adalora.to_json().unwrap());
    texts.push(ia3.to_json().unwrap());
    let loha = LohaConfig::new(2, 4.0).with_rank_dropout(0.1).with_module_dropout(0.2);
    texts.push(loha.with_targets(["lin0", "lin1"]).with_rank_pattern([("lin0", 3)]).to_json().unwrap());
    let lokr = LokrConfig::new(2, 4.0).with_decompose_both(true).with_decompose_factor(2);
    texts.push(lokr.with_targets(["lin0", "lin1"]).with_init(LokrInit::Lycoris).to_json().unwrap());
    texts
}

#[test]
fn mutated_configs_are_read_or_refused() {
    let corpus = configs();
    let base = Victim::new().unwrap();
    let before = state(&base);
    fuzz("mutated_configs_are_read_or_refused", 3000, |dice| {
        let (text, other) = (dice.pick(&corpus).unwrap(), dice.below(corpus.len()));
        let text = mutate_text(text, &corpus[other], dice);
        let Ok(config) = PeftConfig::from_json(&text) else { return Ok(()) };
        // What was read can be written, and be read again.
        if let Err(error) = config.to_json().and_then(|text| PeftConfig::from_json(&text)) {
            return Err(format!("a config does not survive being written: {}", error.chain()));
        }
        let mut model = base.clone();
        let outcome = model.inject_adapter(config.method(), "default");
        check_after(&model, &before, outcome, None)
    });
}

#[test]
fn mutated_adapter_folders_are_read_or_refused() {
    let (config, weights) = sound_adapter().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let base = Victim::new().unwrap();
    let before = state(&base);
    fuzz("mutated_adapter_folders_are_read_or_refused", 2000, |dice| {
        let changed = mutate(&weights, config.as_bytes(), dice);
        let text = if dice.below(4) == 0 { mutate_text(&config, &config, dice) } else { config.clone() };
        std::fs::write(folder.path().join(WEIGHTS), changed).unwrap();
        std::fs::write(folder.path().join(CONFIG), text).unwrap();
        let mut model = base.clone();
        let outcome = model.load_adapter(folder.path(), "default");
        check_after(&model, &before, outcome, Some(folder.path()))
    });
}

#[test]
fn mutated_gguf_files_are_read_or_refused() {
    let sound = Gguf::sound().bytes();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama_gguf.gguf");
    let corpus = [sound, std::fs::read(fixture).unwrap()];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let ids = Tensor::new(&[[0u32, 1]], &Device::Cpu).unwrap();
    fuzz("mutated_gguf_files_are_read_or_refused", 1500, |dice| {
        let bytes = mutate(dice.pick(&corpus).unwrap(), &corpus[1], dice);
        std::fs::write(&path, bytes).unwrap();
        let read = match dice.below(2) {
            0 => LlamaModel::from_gguf(&path, &Device::Cpu),
            _ => LlamaModel::from_gguf_quantized(&path, &Device::Cpu),
        };
        match read {
            // A vocabulary of one token is not a fault, but the ids are outside of it.
            Ok(model) => drop(model.forward(&ids, None)),
            Err(error) if error.chain().contains("model.gguf") => {}
            Err(error) => return Err(format!("the error names no file: {}", error.chain())),
        }
        Ok(())
    });
}

#[test]
fn mutated_keys_of_state_dicts_are_read_or_refused() {
    let variants: Vec<BTreeMap<String, Tensor>> = Variant::all()
        .map(|variant| variant.model("default").unwrap().adapter_state_dict("default").unwrap())
        .collect();
    let keys: Vec<String> = variants[0].keys().cloned().collect();
    let base = Victim::new().unwrap();
    let before = state(&base);
    let config = LoraConfig::new(2, 4.0).with_targets(["lin0"]);
    let loaded = Variant(0).model("default").unwrap();
    let loaded_before = state(&loaded);
    fuzz("mutated_keys_of_state_dicts_are_read_or_refused", 1000, |dice| {
        let mut changed: BTreeMap<String, Tensor> = dice.pick(&variants).unwrap().clone();
        for _ in 0..=dice.below(3) {
            let Some(key) = dice.pick(&keys).cloned() else { break };
            let tensor = changed.remove(&key);
            let other = dice.pick(&keys).cloned().unwrap_or_default();
            let dims = [dice.below(4), dice.below(7), 1];
            let dims = &dims[..dice.below(4)];
            let drawn = Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
            let tensor = tensor.filter(|_| dice.below(2) == 0).unwrap_or(drawn);
            changed.insert(mutate_text(&key, &other, dice), tensor);
        }
        let mut model = base.clone();
        let outcome = model.inject_adapter_from_state_dict(&changed, &config, "default");
        check_after(&model, &before, outcome, None)?;
        // Clones share their variables: one of its own for each attempt that may succeed.
        let mut model = Variant(0).model("default").unwrap();
        let outcome = model.load_adapter_state_dict(&changed, "default");
        check_after(&model, &loaded_before, outcome, None)
    });
}

#[test]
fn mutated_patterns_are_matched_or_refused() {
    let corpus = [
        r".*lin\d$",
        r"^(?!.*(embed|long)).*",
        r"(?:.*\.)?blocks\.\d{1,2}\.up",
        r"(?<!blocks\.0\.)(?:lin0|lin1|up)",
        r"(?=(a+)+$)(a|aa)+b\1",
        r"([a-z]+)\d(?:\.\1)?",
        r"(?i)LIN[01]|(?:a{2,9})+",
        r"[^.]+\.(?P<number>\d+)\..*",
        LONG_NAME,
    ];
    let base = Victim::new().unwrap();
    let before = state(&base);
    fuzz("mutated_patterns_are_matched_or_refused", 1500, |dice| {
        let (pattern, other) = (dice.pick(&corpus).unwrap(), dice.pick(&corpus).unwrap());
        let (pattern, layers) = (mutate_text(pattern, other, dice), mutate_text(other, pattern, dice));
        let config = LoraConfig::new(1, 1.0).with_targets(TargetModules::regex(pattern.as_str()));
        let config = match dice.below(4) {
            0 => config.with_rank_pattern([(layers, 2)]),
            1 => config.with_exclude_modules(TargetModules::regex(layers)),
            2 => config.with_modules_to_save([layers]),
            _ => LoraConfig::new(1, 1.0)
                .with_targets(["up", "lin0"])
                .with_layers_to_transform([0])
                .with_layers_pattern([pattern]),
        };
        let mut model = base.clone();
        let outcome = model.inject_adapter(&config, "default");
        check_after(&model, &before, outcome, None)
    });
}

/// The bits of all that trains.
fn variables(model: &Mlp) -> Vec<Vec<u64>> {
    model.trainable_parameters().iter().map(|(_, var)| bits(var).unwrap()).collect()
}

#[test]
fn mutated_checkpoints_of_runs_are_read_or_refused() {
    let runs = [Method::Lora, Method::AdaLora].map(|method| (method, RunFiles::of_run(method).unwrap()));
    fuzz("mutated_checkpoints_of_runs_are_read_or_refused", 400, |dice| {
        let (method, sound) = dice.pick(&runs).unwrap();
        let mut run = sound.clone();
        let names = run.names();
        let name = dice.pick(&names).unwrap();
        let changed = mutate(run.bytes(name), run.bytes("training.json"), dice);
        // With a size that is right, the file itself is read.
        if dice.below(4) == 0 || name == "training.json" {
            run.damage(name, changed);
        } else {
            run.replace(name, changed);
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in run.into_files() {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let model = Mlp::adapted(*method).unwrap();
        let before = variables(&model);
        let mut trainer = trainer(&model, *method, folder.path(), 1000).unwrap();
        match trainer.resume(&model) {
            // What it goes on to may be NaN, which is an error of its own.
            Ok(_) => drop(model.loss(1).map(|loss| trainer.step(&model, &loss))),
            Err(error) => {
                let text = error.chain();
                if !text.contains(&folder.path().display().to_string()) {
                    return Err(format!("the error names no file: {text}"));
                }
                if variables(&model) != before {
                    return Err(format!("a failed resume has changed the model: {text}"));
                }
            }
        }
        Ok(())
    });
}
