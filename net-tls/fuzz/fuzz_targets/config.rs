//! Configurations of any text: refused, or checked, and nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // A host's name would be looked up.
    if !text.contains("upstreams") {
        warpcore_tls::fuzzing::config(text);
    }
});
