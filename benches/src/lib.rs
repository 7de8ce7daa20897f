//! The benches stand in `benches/benches`, one question per file: `cargo bench -p warpcore-bench`.
