use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use finetune::{Result, continue_text, open};
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use tokenizers::Tokenizer;

/// Reads `POST /ADAPTER` with a prompt as its body.
fn read_request(stream: &TcpStream) -> Result<(String, String)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or_default();
    let adapter = path.trim_start_matches('/').to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        // The line after the last header is empty.
        let Some((name, value)) = header.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut prompt = String::new();
    reader.take(length).read_to_string(&mut prompt)?;
    Ok((adapter, prompt))
}

/// Continues the prompt of one request with the adapter that it names.
fn answer(mut stream: TcpStream, model: &LlamaModel, tokenizer: &Tokenizer) -> Result<()> {
    let (adapter, prompt) = read_request(&stream)?;
    let text = model
        .with_adapter_rows(&[adapter], |model| continue_text(model, tokenizer, &prompt))
        .unwrap_or_else(|error| Err(error.into()));
    let (status, text) = match text {
        Ok(text) => ("200 OK", text),
        Err(error) => ("400 Bad Request", error.to_string()),
    };
    let length = text.len() + 1;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}\n")?;
    Ok(())
}

fn main() -> Result<()> {
    let (mut model, tokenizer) = open("smollm2")?;
    for entry in std::fs::read_dir("adapters")? {
        let entry = entry?;
        // Each adapter has a folder of its own; a model card lies next to them.
        if entry.file_type()?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            println!("{}", model.load_adapter("adapters", &name)?.injection);
        }
    }

    let listener = TcpListener::bind("127.0.0.1:7878")?;
    println!("listening on http://127.0.0.1:7878/");
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let (model, tokenizer) = (&model, &tokenizer);
            scope.spawn(move || {
                let answered = stream.map_err(Into::into).and_then(|stream| answer(stream, model, tokenizer));
                if let Err(error) = answered {
                    eprintln!("{error}");
                }
            });
        }
    });
    Ok(())
}
