//! Signs many messages with one RSA key through an offload queue and verifies each signature.
//!
//! `cargo run --release -p warpcore-examples --example sign_batch -- KEY.pem` (make one with
//! `openssl genrsa -out KEY.pem 2048`).

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use ring::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use warpcore_offload::{Kernel, PrivateKey, Queue, Scheme, Sign};

const MESSAGES: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: sign_batch KEY.pem")?;
    let pem = std::fs::read(&path)?;
    let key = PrivateKey::from_pem(&pem).map_err(|e| format!("{}: {e}", path.display()))?;
    let key = Arc::new(key);
    let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.public().der());

    let queue = Queue::new(64);
    let started = Instant::now();
    queue.run(async {
        // The first 64 take a slot each; the others wait in line and follow as slots come free.
        let ops: Vec<_> = (0..MESSAGES)
            .map(|i| {
                let message = format!("message {i}").into_bytes();
                queue.submit(Sign::new(Arc::clone(&key), Scheme::PssSha256, message))
            })
            .collect();
        for op in ops {
            let signed = op.await;
            let signature = signed.result?;
            public
                .verify(&signed.message, signature.as_ref())
                .map_err(|_| "a signature does not verify")?;
        }
        Ok::<(), Box<dyn Error>>(())
    })?;

    let seconds = started.elapsed().as_secs_f64();
    let sign = *queue.stats().kernel(Kernel::RsaPrivate);
    println!(
        "{MESSAGES} signatures made and verified, {:.0}/s, in {} batches, the largest of {}",
        MESSAGES as f64 / seconds,
        sign.batches,
        sign.batch_len_max,
    );
    Ok(())
}
