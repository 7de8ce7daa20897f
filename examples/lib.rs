//! The examples stand beside this file, one each. Run one with
//! `cargo run --release --example compress_file -- FILE`.
