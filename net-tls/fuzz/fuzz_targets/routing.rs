//! Names of any text, of sites and asked for: each leads to its site, or to none.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| warpcore_tls::fuzzing::routing(text));
