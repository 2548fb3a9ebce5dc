//! Near-duplicates: texts whose sets of character n-grams have a high Jaccard similarity, which is computed exactly.
//!
//! No sketch and no seed: a join by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007; Xiao et al. 2008).
//! With every set in one order, rare n-grams first, two sets can only reach the threshold if their first few n-grams
//! share one. Pairs that do are compared, so no pair is missed and none is guessed.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rayon::prelude::*;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::prompts::forest::Forest;
use crate::prompts::ngrams::{Sets, hash};

/// What a text without characters needs, as characters of a text.
const TEXT_BYTES: usize = 16;

/// Sets that a thread looks up in one go.
const CHUNK: u32 = 64;

/// The first row of each text's cluster of near-duplicates.
///
/// Two texts are of one cluster if they are equal, or if a chain of texts leads from one to the other in which
/// neighbours have a Jaccard similarity of at least `threshold` as sets of n-grams: runs of `size` characters (a
/// shorter text is one n-gram). N-grams are compared by 58 bits of a hash. Memory: 8 bytes a character, 16 for each
/// n-gram in a prefix (about 1 - `threshold` of them) that another text has too, 64 a text, and 64 MiB.
///
/// # Errors
/// `size` = 0; `threshold` outside (0, 1]; 2^32 - 1 texts or more; a text of 2^32 - 1 bytes or more.
///
/// # Examples
/// ```
/// use mipo::prompts::clusters;
///
/// let texts = ["Name a river in France.", "Add 2 and 3.", "Name a river in France!", "Add 2 and 3."];
/// assert_eq!(clusters(&texts, 5, 0.8)?, [0, 1, 0, 1]);
/// # Ok::<(), mipo::error::Error>(())
/// ```
pub fn clusters(texts: &[&str], size: usize, threshold: f64) -> Result<Vec<u64>, Error> {
    if size == 0 {
        return Err(Error::EmptyRun {
            name: "size",
            what: "characters",
        });
    }
    if !(threshold > 0.0 && threshold <= 1.0) {
        return Err(Error::Share {
            name: "threshold",
            got: threshold.to_string(),
        });
    }
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    if let Some(&got) = [texts.len(), longest]
        .iter()
        .find(|&&length| length >= u32::MAX as usize)
    {
        return Err(Error::TooLarge { got });
    }
    // A character has an n-gram; one in a prefix, an entry and a posting, each of which is moved once as it is gathered.
    let bytes = (8.0 + 80.0 * (1.0 - threshold)) as usize;
    memory::expect(memory::bytes(texts, TEXT_BYTES), bytes)?;
    let first = first_equal(texts);
    let distinct: Vec<u32> = (0..texts.len() as u32)
        .filter(|&row| first[row as usize] == row)
        .collect();
    let sets = Sets::new(texts, &distinct, size, threshold);
    let forest = Forest::new(sets.len());
    link(&sets, &forest);
    let roots: Vec<u32> = (0..sets.len()).map(|set| forest.root(set)).collect();
    let mut rows = vec![u32::MAX; roots.len()];
    for (set, &root) in (0..).zip(&roots) {
        rows[root as usize] = rows[root as usize].min(sets.row(set));
    }
    let mut clusters = vec![0; texts.len()];
    for (set, &root) in (0..).zip(&roots) {
        clusters[sets.row(set) as usize] = rows[root as usize];
    }
    Ok(first
        .into_par_iter()
        .map(|row| u64::from(clusters[row as usize]))
        .collect())
}

/// For each text the first row with the same text.
fn first_equal(texts: &[&str]) -> Vec<u32> {
    let mut order: Vec<(u64, u32)> = texts
        .par_iter()
        .zip(0..texts.len() as u32)
        .map(|(text, row)| (hash(text.as_bytes()), row))
        .collect();
    order.par_sort_unstable_by(|one, other| {
        let text = |row: u32| texts[row as usize];
        one.0
            .cmp(&other.0)
            .then_with(|| text(one.1).cmp(text(other.1)))
            .then(one.1.cmp(&other.1))
    });
    let mut first = vec![0; texts.len()];
    for equal in order.chunk_by(|one, next| one.0 == next.0 && texts[one.1 as usize] == texts[next.1 as usize]) {
        equal.iter().for_each(|&(_, row)| first[row as usize] = equal[0].1);
    }
    first
}

/// A token in the prefix of a set, and its place there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    token: u64,
    set: u32,
    place: u32,
}

/// A set that has a token, with what rules most other sets out before their tokens are compared.
#[derive(Clone, Copy)]
struct Posting {
    set: u32,
    size: u32,
    place: u32,
    /// The next posting of the run, or the run's end, that was in another cluster when the index was made.
    other: u32,
    parities: u128,
}

/// The sets by the tokens of their prefixes, smaller sets first.
struct Index {
    /// Of each set the places that it looks up, and where their runs start in `run_of`.
    prefixes: Vec<(Range<u32>, usize)>,
    run_of: Vec<u32>,
    /// Where each run of postings starts; the first is empty, and for tokens that one prefix has.
    starts: Vec<usize>,
    postings: Vec<Posting>,
    roots: Vec<u32>,
}

impl Index {
    fn new(sets: &Sets, forest: &Forest) -> Self {
        let ids = (0..sets.len()).into_par_iter();
        let prefixes: Vec<Range<u32>> = ids.clone().map(|set| sets.prefix(set)).collect();
        let entries_of = |set: u32| {
            prefixes[set as usize].clone().map(move |place| Entry {
                token: sets.tokens(set)[place as usize],
                set,
                place,
            })
        };
        let mut entries: Vec<Entry> = ids.clone().flat_map_iter(entries_of).collect();
        entries.par_sort_unstable();
        // One pass along neighbours links dense clusters, which are then passed over as wholes.
        entries
            .par_windows(2)
            .filter(|pair| pair[0].token == pair[1].token)
            .for_each(|pair| {
                if forest.root(pair[0].set) != forest.root(pair[1].set)
                    && sets.are_alike((pair[0].set, 0), (pair[1].set, 0))
                {
                    forest.join(pair[0].set, pair[1].set);
                }
            });
        let roots: Vec<u32> = ids.clone().map(|set| forest.root(set)).collect();
        let mut end = 0;
        let prefixes: Vec<(Range<u32>, usize)> = prefixes
            .into_iter()
            .map(|places| {
                end += places.len();
                (places.clone(), end - places.len())
            })
            .collect();
        let folded: Vec<u128> = ids.map(|set| sets.folded(set)).collect();
        let root_of = |posting: &Posting| roots[posting.set as usize];
        let (mut run_of, mut starts, mut postings) = (vec![0; entries.len()], vec![0, 0], Vec::new());
        for run in entries
            .chunk_by(|one, next| one.token == next.token)
            .filter(|run| run.len() > 1)
        {
            for &Entry { set, place, .. } in run {
                let (places, start) = &prefixes[set as usize];
                run_of[start + (place - places.start) as usize] = starts.len() as u32 - 1;
                if place < sets.indexed(set) {
                    let (size, parities) = (sets.size(set), folded[set as usize]);
                    postings.push(Posting {
                        set,
                        size,
                        place,
                        other: 0,
                        parities,
                    });
                }
            }
            starts.push(postings.len());
        }
        for run in starts.windows(2) {
            for place in (run[0]..run[1]).rev() {
                let alike = place + 1 < run[1] && root_of(&postings[place]) == root_of(&postings[place + 1]);
                postings[place].other = if alike {
                    postings[place + 1].other
                } else {
                    place as u32 + 1
                };
            }
        }
        Self {
            prefixes,
            run_of,
            starts,
            postings,
            roots,
        }
    }

    /// Links a set to each like set that comes before it. `seen`: of each set the last that was compared with it, + 1.
    fn link(&self, set: u32, sets: &Sets, forest: &Forest, seen: &mut [u32]) {
        let (places, start) = &self.prefixes[set as usize];
        let (first, size, root) = (sets.first_like(set), sets.size(set), self.roots[set as usize]);
        let (least, parities) = (sets.size(first), sets.folded(set));
        let needed: Vec<u32> = (least..=size).map(|other| sets.needed(size, other)).collect();
        for (place, &run) in places.clone().zip(&self.run_of[*start..]) {
            let (mut at, end) = (self.starts[run as usize], self.starts[run as usize + 1]);
            at += self.postings[at..end].partition_point(|posting| posting.set < first);
            while at < end && self.postings[at].set < set {
                let posting = &self.postings[at];
                let other = posting.set;
                at += 1;
                if posting.other as usize > at && self.roots[other as usize] == root {
                    at = posting.other as usize;
                    continue;
                }
                // Whatever they share comes after the first token in common, at which they are compared first.
                let needed = needed[(posting.size - least) as usize];
                let unshared = (posting.parities ^ parities).count_ones();
                if (size - place).min(posting.size - posting.place) >= needed
                    && u64::from(unshared) + 2 * u64::from(needed) <= u64::from(size) + u64::from(posting.size)
                    && std::mem::replace(&mut seen[other as usize], set + 1) != set + 1
                    && forest.root(other) != forest.root(set)
                    && sets.are_alike((set, place), (other, posting.place))
                {
                    forest.join(set, other);
                }
            }
        }
    }
}

/// Links all pairs of sets that reach the threshold, on all threads, the largest sets first.
fn link(sets: &Sets, forest: &Forest) {
    let (index, next) = (Index::new(sets, forest), AtomicU32::new(0));
    (0..rayon::current_num_threads()).into_par_iter().for_each(|_| {
        let mut seen = vec![0; sets.len() as usize];
        loop {
            let end = sets.len().saturating_sub(next.fetch_add(CHUNK, Relaxed));
            if end == 0 {
                return;
            }
            interrupt::check();
            (end.saturating_sub(CHUNK)..end).for_each(|set| index.link(set, sets, forest, &mut seen));
        }
    });
}
