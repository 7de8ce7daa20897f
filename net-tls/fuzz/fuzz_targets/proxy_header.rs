//! PROXY headers of any bytes: refused, not whole yet, or the same again without what follows.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| warpcore_tls::fuzzing::proxy_header(bytes));
