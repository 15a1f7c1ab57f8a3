//! Drop-in constructors with candle-nn's names that build [`Adapted`] layers.
