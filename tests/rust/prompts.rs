//! Near-duplicates and overlaps are the same on any number of threads.

use mipo::prompts::{ABSENT, clusters, overlaps};

use crate::data::{noise, on_threads};

/// Texts of a few words out of many, most of them another text with one word changed.
fn texts(count: usize) -> Vec<String> {
    let mut state = 1_u64;
    let mut noise = |n: usize| noise(&mut state, n as u64) as usize;
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
    let compare = || {
        let overlaps = overlaps((train, &groups[..3_000]), (test, &groups[3_000..]), 4, 0.5).unwrap();
        (clusters(&texts, 5, 0.8).unwrap(), overlaps)
    };
    let alone = on_threads(1, compare);
    assert!(alone.0.iter().zip(0..).filter(|(first, row)| **first != *row).count() > 100);
    let occur = alone.1.held_out.iter().filter(|&&row| row != ABSENT).count();
    assert!((100..3_000).contains(&occur), "{occur}");
    assert_eq!(alone, on_threads(2, compare));
    assert_eq!(alone, on_threads(8, compare));
}
