//! The hub client, against a small server on this machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use peft_runtime::hub::Hub;
use peft_runtime::prelude::*;
use peft_runtime::{Error, ModelWeights};

type Files = BTreeMap<String, Vec<u8>>;

/// Serves `files` by path as the hub does; returns its address.
fn serve(files: Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let files = Arc::clone(&files);
            std::thread::spawn(move || answer(stream.unwrap(), &files));
        }
    });
    address
}

fn answer(mut stream: TcpStream, files: &Files) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut start = 0;
    let mut end = usize::MAX;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = range.split_once('-').unwrap();
            start = from.parse().unwrap();
            end = to.parse().map_or(usize::MAX, |to: usize| to + 1);
        }
    }
    let Some(body) = files.get(&path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let part = &body[start.min(body.len())..end.min(body.len())];
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{:x}\"\r\n\
         x-repo-commit: 0123456789abcdef\r\nConnection: close\r\n\r\n",
        part.len(),
        (start + part.len()).saturating_sub(1),
        body.len(),
        path.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte))),
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part));
}

fn tensors(names: &[&str]) -> Vec<u8> {
    let ones = |name: &&str| ((*name).to_owned(), Tensor::ones((3, 3), DType::F32, &Device::Cpu).unwrap());
    safetensors::serialize(names.iter().map(ones), None).unwrap()
}

#[derive(Injectable)]
#[peft(target = "linear")]
struct Model {
    linear: Adapted<Linear>,
}

fn model() -> Model {
    Model { linear: Linear::new(Tensor::ones((3, 3), DType::F32, &Device::Cpu).unwrap(), None).into() }
}

#[test]
fn models_in_one_file_and_in_shards_are_downloaded_by_id() {
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    let files: Files = [
        ("/org/whole/resolve/main/config.json", b"{}".to_vec()),
        ("/org/whole/resolve/main/tokenizer.json", b"{}".to_vec()),
        ("/org/whole/resolve/main/model.safetensors", tensors(&["a"])),
        ("/org/sharded/resolve/v2/config.json", b"{}".to_vec()),
        ("/org/sharded/resolve/v2/model.safetensors.index.json", index.to_vec()),
        ("/org/sharded/resolve/v2/one.safetensors", tensors(&["a"])),
        ("/org/sharded/resolve/v2/two.safetensors", tensors(&["b"])),
    ]
    .map(|(path, body)| (path.to_owned(), body))
    .into();
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::with_endpoint(serve(files), cache.path()).unwrap();
    let folder = hub.model("org/whole", None).unwrap();
    assert!(folder.join("tokenizer.json").is_file());
    assert_eq!(ModelWeights::open(&folder).unwrap().names().collect::<Vec<_>>(), ["a"]);
    let folder = hub.model("org/sharded", Some("v2")).unwrap();
    assert_eq!(ModelWeights::open(&folder).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn an_adapter_is_downloaded_by_id_and_loads() {
    let mut saved = model();
    saved.inject_adapter(&LoraConfig::new(2, 2.0).with_init(LoraInit::Random), "default").unwrap();
    let folder = tempfile::tempdir().unwrap();
    saved.save_pretrained(folder.path(), "default").unwrap();
    let file = |name: &str| {
        (format!("/org/adapter/resolve/main/{name}"), std::fs::read(folder.path().join(name)).unwrap())
    };
    let files = [file("adapter_config.json"), file("adapter_model.safetensors")].into();
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::with_endpoint(serve(files), cache.path()).unwrap();
    let mut other = model();
    other.load_adapter(hub.adapter("org/adapter", None).unwrap(), "default").unwrap();
    assert_eq!(other.adapter_state_dict("default").unwrap().len(), 2);
}

#[test]
fn a_missing_file_is_named_with_its_repository() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::with_endpoint(serve(Files::new()), cache.path()).unwrap();
    let error = hub.model("org/absent", None).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }));
    assert!(
        error.chain().starts_with("cannot get `config.json` of `org/absent` from the hub: "),
        "{}",
        error.chain()
    );
}
