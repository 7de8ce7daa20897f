//! Requests of any bytes: parsed within their bounds, whatever they claim.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| warpcore_fs::fuzz_request(bytes));
