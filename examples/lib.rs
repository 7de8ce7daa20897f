//! The examples stand beside this file, one each. Run one with
//! `cargo run --release -p warpcore-examples --example compress_file -- FILE`.

pub mod http;
