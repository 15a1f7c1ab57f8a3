//! Base models in the folders of diffusers.

use std::fs;

use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};
use serde_json::json;

use crate::fixtures::{Bases, file};

const SINGLE: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

#[test]
fn folders_of_diffusers_open_and_are_written_under_their_own_names() {
    let bases = Bases::read();
    let adapter = || StoredAdapter::open_for(file("kohya_sd15.safetensors"), &bases.base("sd15")).unwrap();
    let output = tempfile::tempdir().unwrap();
    let write = |weights: ModelWeights, name: &str| {
        let merged = MergedWeights::new(weights).add(adapter(), 1.0).unwrap();
        let folder = output.path().join(name);
        merged.write(&folder, &mut |_| {}).unwrap();
        merged.verify(&folder, &mut |_| {}).unwrap();
        assert!(folder.join("config.json").is_file());
        folder
    };
    let single = write(bases.weights("sd15"), "single");
    assert!(single.join(SINGLE).is_file() && !single.join(INDEX).exists());

    let sharded = output.path().join("sharded-base");
    fs::create_dir(&sharded).unwrap();
    let (mut shards, mut map) = ([Vec::new(), Vec::new()], serde_json::Map::new());
    let name = |number: usize| format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", number + 1);
    for (number, (tensor, value)) in bases.tensors("sd15").into_iter().enumerate() {
        map.insert(tensor.clone(), json!(name(number % 2)));
        shards[number % 2].push((tensor, value));
    }
    for (number, tensors) in shards.into_iter().enumerate() {
        safetensors::serialize_to_file(tensors, None, &sharded.join(name(number))).unwrap();
    }
    fs::write(sharded.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
    fs::write(sharded.join("config.json"), "{}").unwrap();
    let written = write(ModelWeights::open(&sharded).unwrap(), "sharded");
    assert!(written.join(INDEX).is_file());
    let (first, second) = (ModelWeights::open(&single).unwrap(), ModelWeights::open(&written).unwrap());
    let names: Vec<&str> = first.names().collect();
    assert_eq!(names, second.names().collect::<Vec<_>>());
    for name in names {
        let read = |weights: &ModelWeights| {
            let tensor = weights.tensor(name, &candle_core::Device::Cpu).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(read(&first), read(&second), "{name}");
    }
}

#[test]
fn a_pipeline_says_which_models_it_has() {
    let bases = Bases::read();
    let pipeline = tempfile::tempdir().unwrap();
    for (name, base, file) in [("unet", "sd15", SINGLE), ("text_encoder", "text", "model.safetensors")] {
        let folder = pipeline.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(bases.folder(base).join(file), folder.join(file)).unwrap();
    }
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"]
    });
    fs::write(pipeline.path().join("model_index.json"), index.to_string()).unwrap();
    let error = format!("{:?}", ModelWeights::open(pipeline.path()).err().unwrap());
    assert!(error.contains("it is a pipeline with several models"), "{error}");
    assert!(error.contains("`text_encoder` and `unet`"), "{error}");
    assert!(ModelWeights::open(pipeline.path().join("unet")).is_ok());
}

#[test]
fn the_one_variant_of_the_weights_is_opened_and_of_two_none() {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    let source = bases.folder("sd15").join(SINGLE);
    fs::copy(&source, folder.path().join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert!(ModelWeights::open(folder.path()).is_ok());
    fs::copy(&source, folder.path().join("diffusion_pytorch_model.non_ema.safetensors")).unwrap();
    let error = format!("{:?}", ModelWeights::open(folder.path()).err().unwrap());
    assert!(error.contains("`diffusion_pytorch_model.fp16.safetensors` and"), "{error}");
}
