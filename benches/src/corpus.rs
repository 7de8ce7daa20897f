//! What is compressed: made from a seed, or from what every machine has.

use std::fs;

/// Chunks are of this many bytes, as the filesystem's.
pub(crate) const CHUNK: usize = 65_536;

/// A kind of contents, in chunks.
pub(crate) struct Corpus {
    pub(crate) name: &'static str,
    pub(crate) chunks: Vec<Vec<u8>>,
}

/// Machine code: this very program, from its start.
pub(crate) fn binary(chunks: usize) -> Result<Corpus, String> {
    let bytes = fs::read("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
    let chunks = bytes.chunks_exact(CHUNK).take(chunks).map(<[u8]>::to_vec).collect();
    Ok(Corpus { name: "binary", chunks })
}

/// Lines as a server logs them.
pub(crate) fn log(chunks: usize) -> Corpus {
    let mut random = Random(1);
    let mut text = Vec::with_capacity(chunks * CHUNK + 200);
    while text.len() < chunks * CHUNK {
        let [host, path, status, len, user] = [250, 40, 12, 90_000, 5_000].map(|n| random.below(n));
        let status = [200, 200, 200, 200, 200, 200, 304, 304, 404, 301, 500, 206][status];
        let line = format!(
            "10.7.{host}.{user} - - [25/Nov/2026:10:{:02}:{:02} +0000] \"GET /api/v2/items/{path}/view \
             HTTP/1.1\" {status} {len} \"-\" \"Mozilla/5.0 (X11; Linux x86_64)\" rt=0.{len:05}\n",
            random.below(60),
            random.below(60),
        );
        text.extend_from_slice(line.as_bytes());
    }
    Corpus {
        name: "log",
        chunks: text.chunks_exact(CHUNK).take(chunks).map(<[u8]>::to_vec).collect(),
    }
}

/// Bytes without any rule, as encrypted files are.
pub(crate) fn random(chunks: usize) -> Corpus {
    let mut random = Random(2);
    let chunk = |_| random.bytes(CHUNK);
    Corpus { name: "random", chunks: (0..chunks).map(chunk).collect() }
}

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Bytes, eight at a time.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }
}
