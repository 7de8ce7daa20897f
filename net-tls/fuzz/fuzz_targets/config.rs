//! Configurations of any text: refused, or checked, and nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| warpcore_tls::fuzzing::config(text));
