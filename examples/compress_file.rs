//! Compresses a file chunk by chunk through an offload queue, keeping the queue full.
//!
//! `cargo run --release -p warpcore-examples --example compress_file -- FILE` writes FILE.zst; `zstd -dc` reads it.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Read, Write};

use warpcore_offload::{Codec, Compress, Op, Queue};

const CHUNK_LEN_BYTES: usize = 64 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: compress_file FILE")?;
    let mut source = File::open(&path)?;
    let mut target_path = path.clone();
    target_path.push(".zst");
    let mut target = BufWriter::new(File::create(&target_path)?);

    let queue = Queue::new(16);
    let (read, written) = queue.run(compress(&queue, &mut source, &mut target))?;
    target.flush()?;
    println!("{}: {read} bytes -> {written}", path.display());
    Ok(())
}

async fn compress(
    queue: &Queue,
    source: &mut impl Read,
    target: &mut impl Write,
) -> Result<(usize, usize), Box<dyn Error>> {
    let (mut read, mut written) = (0, 0);
    // In flight, oldest first: frames are written in the order of the file.
    let mut ops: VecDeque<Op<Compress<Vec<u8>, Vec<u8>>>> = VecDeque::new();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_LEN_BYTES);
        source.by_ref().take(CHUNK_LEN_BYTES as u64).read_to_end(&mut chunk)?;
        read += chunk.len();
        let at_end = chunk.is_empty();
        if !at_end {
            let room = vec![0; Codec::Zstd.bound(chunk.len())];
            ops.push_back(queue.submit(Compress {
                codec: Codec::Zstd,
                level: 3,
                source: chunk,
                target: room,
            }));
        }
        while ops.len() >= queue.depth() || (at_end && !ops.is_empty()) {
            let done = ops.pop_front().expect("checked by the loop").await;
            let len = done.result?;
            target.write_all(&done.target[..len])?;
            written += len;
        }
        if at_end {
            return Ok((read, written));
        }
    }
}
