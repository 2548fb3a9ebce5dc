//! What several tests share: numbers, threads and a tokenizer.

use serde_json::{Value, json};

/// The next number of `0..n`; the library's own stream is not public.
pub(crate) fn noise(state: &mut u64, n: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

/// Runs `work` on so many threads.
pub(crate) fn on_threads<T: Send>(count: usize, work: impl Fn() -> T + Send + Sync) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    pool.install(work)
}

/// A byte-level tokenizer without a normalizer: ids 0 to 255 are bytes, then come the merges, then the added tokens.
pub(crate) fn byte_level(merges: &[[&str; 2]], added: &[&str]) -> Value {
    let bytes = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let words = bytes.map(String::from).chain(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> = (0..).zip(words).map(|(id, word)| (word, json!(id))).collect();
    let token = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = (vocab.len()..).zip(added).map(token).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": merges}
    })
}
