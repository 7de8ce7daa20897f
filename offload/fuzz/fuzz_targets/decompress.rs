//! Stored bytes from outside, to every codec, as a whole and piece by piece: they end in a result or an
//! error, within the target, and the next request is not harmed. The first byte chooses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use warpcore_offload::{Codec, Compress, Decompress, Feed, Queue, Stream};

thread_local! {
    static QUEUE: Queue = Queue::new(4);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, stored)) = bytes.split_first() else { return };
    let codec = Codec::ALL[usize::from(*choice) % Codec::ALL.len()];
    let target_len = usize::from(*choice) * 64;
    QUEUE.with(|queue| {
        let request = Decompress { codec, source: stored.to_vec(), target: vec![0xaa; target_len] };
        let done = queue.run(queue.submit(request));
        assert_eq!(done.source, stored);
        if let Ok(len) = done.result {
            assert!(len <= target_len);
        }
        // Whatever is plain comes back, after whatever that was.
        let target = vec![0; codec.bound(stored.len())];
        let compressed =
            queue.run(queue.submit(Compress { codec, level: 1, source: stored.to_vec(), target }));
        let len = compressed.result.expect("the bound holds");
        let request = Decompress {
            codec,
            source: compressed.target[..len].to_vec(),
            target: vec![0; stored.len()],
        };
        let back = queue.run(queue.submit(request));
        assert_eq!((back.result, back.target.as_slice()), (Ok(stored.len()), stored));

        let Ok(mut stream) = Stream::decompress(codec) else { return };
        for piece in stored.chunks(usize::from(*choice % 16) + 1) {
            let target = vec![0; 100];
            let feed = Feed { stream, source: piece.to_vec(), target, end: false };
            let fed = queue.run(queue.submit(feed));
            stream = fed.stream;
            match fed.result {
                Ok(progress) => assert!(progress.produced <= 100 && progress.consumed <= piece.len()),
                Err(_) => return,
            }
        }
    });
});
