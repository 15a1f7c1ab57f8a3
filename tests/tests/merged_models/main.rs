//! Merged models compute what PEFT computes with base model and adapter; `python/merged_models.py` wrote the fixture.

mod compared;
mod convolutions;
mod files;
mod fixture;
mod gguf;
mod in_memory;
