//! Adapters as people have them: what PEFT wrote after public reports, and what other programs make of its state dicts.

mod case;
mod configs;
mod keys;
mod nested;
mod ties;
