use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use curves::Curve;
use peft_runtime::ModelWeights;
use peft_runtime::prelude::*;

/// The adapter, the place on its curve, and where to send the result.
struct Request {
    adapter: String,
    x: f32,
    answer: Sender<f32>,
}

/// Computes everything that is waiting as one batch, each row with its own adapter.
fn compute(model: &Curve, requests: &Receiver<Request>) -> peft_runtime::Result<()> {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        batch.extend(requests.try_iter().take(63));
        let rows: Vec<&str> = batch.iter().map(|request| request.adapter.as_str()).collect();
        let x: Vec<f32> = batch.iter().map(|request| request.x).collect();
        let x = Tensor::from_vec(x, (batch.len(), 1), &Device::Cpu)?;
        let y = no_grad(|| model.with_adapter_rows(&rows, |model| model.forward(&x)))??;
        for (request, y) in batch.iter().zip(y.flatten_all()?.to_vec1::<f32>()?) {
            // The client may have hung up.
            let _ = request.answer.send(y);
        }
    }
    Ok(())
}

/// Answers `GET /ADAPTER/NUMBER`.
fn answer(mut stream: &TcpStream, adapters: &[String], requests: &Sender<Request>) -> std::io::Result<()> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let path = head.first().and_then(|line| line.split_whitespace().nth(1)).unwrap_or("/");
    let (adapter, x) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let known = adapters.iter().any(|name| name == adapter);
    let (status, text) = match x.parse::<f32>() {
        Ok(x) if known => {
            let (answer, reply) = channel();
            let sent = requests.send(Request { adapter: adapter.to_owned(), x, answer });
            match sent.ok().and_then(|()| reply.recv().ok()) {
                Some(y) => ("200 OK", format!("{y:.4}\n")),
                None => ("500 Internal Server Error", "the model has stopped\n".to_owned()),
            }
        }
        _ => ("404 Not Found", format!("ask for /ADAPTER/NUMBER; adapters are {}\n", adapters.join(", "))),
    };
    let length = text.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vb = ModelWeights::open("base.safetensors")?.var_builder(DType::F32, &Device::Cpu);
    let mut model = Curve::new(vb)?;
    for entry in std::fs::read_dir("adapters")? {
        let entry = entry?;
        // A model card lies next to the folders of the adapters.
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        println!("{}", model.load_adapter("adapters", &name)?.injection);
    }
    let mut adapters = model.adapter_names();
    // Rows with this name are computed without an adapter.
    adapters.push("__base__".to_owned());

    let (requests, queue) = channel();
    thread::spawn(move || {
        if let Err(error) = compute(&model, &queue) {
            eprintln!("{}", error.chain());
        }
    });

    let listener = TcpListener::bind("127.0.0.1:7878")?;
    println!("listening on http://127.0.0.1:7878/");
    for stream in listener.incoming() {
        let (stream, adapters, requests) = (stream?, adapters.clone(), requests.clone());
        thread::spawn(move || answer(&stream, &adapters, &requests));
    }
    Ok(())
}
