//! Near-duplicates and overlaps are the same on any number of threads.
#![allow(clippy::unwrap_used)]

use mipo::prompts::duplicates::clusters;
use mipo::prompts::overlap::{ABSENT, overlaps};

fn threads<T: Send>(count: usize, work: impl Fn() -> T + Send + Sync) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    pool.install(work)
}

/// Texts of a few words out of many, most of them another text with one word changed.
fn texts(count: usize) -> Vec<String> {
    let mut state = 1_u64;
    let mut noise = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for row in 0..count {
        let mut words: Vec<usize> = if row < 50 {
            (0..6 + noise(20)).map(|_| noise(1_000)).collect()
        } else {
            rows[noise(row)].clone()
        };
        let place = noise(words.len());
        words[place] = noise(1_000);
        rows.push(words);
    }
    let word = |word: &usize| format!("w{}x", word * 7_919);
    rows.iter()
        .map(|words| words.iter().map(word).collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn the_same_clusters_and_overlaps_on_any_number_of_threads() {
    let texts = texts(4_000);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let groups = vec![0; texts.len()];
    let (train, test) = texts.split_at(3_000);
    let find = || {
        let found = overlaps((train, &groups[..3_000]), (test, &groups[3_000..]), 4, 0.5).unwrap();
        (clusters(&texts, 5, 0.8).unwrap(), found)
    };
    let alone = threads(1, find);
    assert!(alone.0.iter().zip(0..).filter(|(first, row)| **first != *row).count() > 100);
    let occur = alone.1.held_out.iter().filter(|&&row| row != ABSENT).count();
    assert!((100..3_000).contains(&occur), "{occur}");
    assert_eq!(alone, threads(2, find));
    assert_eq!(alone, threads(8, find));
}
