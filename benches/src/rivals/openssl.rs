//! The system's libcrypto, loaded at run time.

use std::ffi::{c_int, c_long, c_void};
use std::hint::black_box;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use libloading::Library;

type Pointer = *mut c_void;

use super::Signer;

pub(super) fn signer(der: &[u8]) -> Result<Signer, String> {
    // SAFETY: a library of functions; its initialisers are OpenSSL's own.
    let library = unsafe { Library::new("libcrypto.so.3") }.map_err(|error| error.to_string())?;
    let library = Arc::new(library);
    let d2i = function!(
        library,
        b"d2i_AutoPrivateKey",
        fn(*mut Pointer, *mut *const u8, c_long) -> Pointer
    );
    let new = function!(library, b"EVP_MD_CTX_new", fn() -> Pointer);
    let free = function!(library, b"EVP_MD_CTX_free", fn(Pointer) -> ());
    let sha256 = function!(library, b"EVP_sha256", fn() -> *const c_void);
    let init = function!(
        library,
        b"EVP_DigestSignInit",
        fn(Pointer, *mut Pointer, *const c_void, *const c_void, Pointer) -> c_int
    );
    let sign = function!(
        library,
        b"EVP_DigestSign",
        fn(Pointer, *mut u8, *mut usize, *const u8, usize) -> c_int
    );
    let mut start = der.as_ptr();
    let len = c_long::try_from(der.len()).map_err(|error| error.to_string())?;
    // SAFETY: `der` is as long as it says.
    let key = unsafe { d2i(null_mut(), &raw mut start, len) };
    if key.is_null() {
        return Err("it does not read the key".to_owned());
    }
    Ok(Box::new(move |message| {
        // The functions live as long as the library.
        let _library = &library;
        let mut signature = [0_u8; 512];
        let mut len = signature.len();
        // SAFETY: the key is never freed; lengths are those of the buffers.
        let made = unsafe {
            let context = new();
            init(context, null_mut(), sha256(), null(), key);
            let made = sign(
                context,
                signature.as_mut_ptr(),
                &raw mut len,
                message.as_ptr(),
                message.len(),
            );
            free(context);
            made
        };
        assert_eq!(made, 1, "a good key signs");
        black_box(&signature);
    }))
}
