//! Which texts are nearly the same as others: exact Jaccard similarity of their sets of character n-grams. Knows texts
//! and rows, no prompts and no Python.
//!
//! No sketch and no seed: a join by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007; Xiao et al. 2008).
//! With every set in one order, rare n-grams first, two sets can only reach the threshold if their first few n-grams
//! share one. Pairs that do are compared, so no pair is missed and none is guessed.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rayon::prelude::*;

use crate::error::Error;
use crate::random::mix;

/// Bits of a token that are its n-gram's hash; those above say how often the n-gram occurs.
const HASH_BITS: u32 = 58;

/// Entries of the table of counts, at most: 64 MiB.
const COUNTS_MAX: usize = 1 << 24;

/// Sets that a thread looks up in one go.
const CHUNK: u32 = 64;

/// For each text the first row of its cluster: texts are of one cluster if they are equal or if a chain of texts leads
/// from one to the other in which neighbours have a Jaccard similarity of at least `threshold`, as sets of `size`
/// successive characters (a shorter text is one n-gram).
///
/// Pure in its arguments, the same for any number of threads. N-grams are compared by 58 bits of a hash. Memory: 8
/// bytes a character, 16 for each n-gram in a prefix (about 1 - `threshold` of them) that is not the only one of its
/// kind, 64 a text, and 64 MiB.
///
/// # Errors
/// `size` = 0; `threshold` outside (0, 1]; 2^32 - 1 texts or more; a text of more characters than 2^32 - 1.
pub fn clusters(texts: &[&str], size: usize, threshold: f64) -> Result<Vec<u64>, Error> {
    if size == 0 {
        return Err(Error::NoNgram {
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
        return Err(Error::TooLong { got });
    }
    let first = first_equal(texts);
    let distinct: Vec<u32> = (0..texts.len() as u32)
        .filter(|&row| first[row as usize] == row)
        .collect();
    let sets = Sets::new(texts, &distinct, size, threshold);
    let forest = Forest::new(sets.len());
    link(&sets, &forest);
    let roots: Vec<u32> = (0..sets.len()).map(|set| forest.root(set)).collect();
    let mut rows = vec![u32::MAX; roots.len()];
    for (set, &root) in sets.sets.iter().zip(&roots) {
        rows[root as usize] = rows[root as usize].min(set.row);
    }
    let mut clusters = vec![0; texts.len()];
    for (set, &root) in sets.sets.iter().zip(&roots) {
        clusters[set.row as usize] = rows[root as usize];
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

/// A hash of the bytes; of eight at most, a different one for each.
fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(mix(state)
            .wrapping_add(u64::from_le_bytes(word))
            .wrapping_add((chunk.len() as u64) << 56))
    })
}

/// The hashes of the text's n-grams, in `into`; says how many there are. A text of c characters has at most
/// max(c - size + 1, 1), which is the length of `into`.
fn shingle(text: &str, size: usize, into: &mut [u64]) -> usize {
    let ends = text
        .char_indices()
        .map(|(place, _)| place)
        .skip(size)
        .chain([text.len()]);
    let mut count = 0;
    for ((start, _), end) in text.char_indices().zip(ends).take(into.len()) {
        into[count] = hash(&text.as_bytes()[start..end]);
        count += 1;
    }
    if count == 0 {
        into[0] = hash(text.as_bytes());
        count = 1;
    }
    into[..count].sort_unstable();
    distinct(&mut into[..count])
}

/// Moves the distinct entries of a sorted slice to its front; says how many there are.
fn distinct(sorted: &mut [u64]) -> usize {
    let mut count = 0;
    for place in 0..sorted.len() {
        if count == 0 || sorted[place] != sorted[count - 1] {
            sorted[count] = sorted[place];
            count += 1;
        }
    }
    count
}

/// Sets of tokens in the order of their sizes; `set` is a number in that order.
struct Sets {
    threshold: f64,
    /// Tokens of all sets; a set is sorted, so its rarest come first.
    tokens: Vec<u64>,
    /// Of each set the parity of its tokens in each of as many classes as it has tokens, or up to twice as many.
    parities: Vec<u64>,
    sets: Vec<Set>,
}

#[derive(Clone, Copy)]
struct Set {
    row: u32,
    size: u32,
    /// Where its tokens start in `tokens`.
    start: usize,
    /// Where its words of 64 parities start in `parities`.
    parity: usize,
}

impl Sets {
    fn new(texts: &[&str], rows: &[u32], size: usize, threshold: f64) -> Self {
        let most = |&row: &u32| (texts[row as usize].chars().count() + 1).saturating_sub(size).max(1);
        let lengths: Vec<usize> = rows.par_iter().map(most).collect();
        let mut tokens = vec![0; lengths.iter().sum()];
        let mut sets = Vec::with_capacity(rows.len());
        let mut slices = Vec::with_capacity(rows.len());
        let (mut rest, mut start) = (tokens.as_mut_slice(), 0);
        for (&row, &length) in rows.iter().zip(&lengths) {
            let (slice, after) = rest.split_at_mut(length);
            sets.push(Set {
                row,
                size: 0,
                start,
                parity: 0,
            });
            slices.push(slice);
            (rest, start) = (after, start + length);
        }
        let counts = Counts::new(start);
        sets.par_iter_mut().zip(&mut slices).for_each(|(set, slice)| {
            set.size = shingle(texts[set.row as usize], size, slice) as u32;
            slice[..set.size as usize].iter().for_each(|&token| counts.add(token));
        });
        sets.par_iter().zip(slices).for_each(|(set, slice)| {
            let slice = &mut slice[..set.size as usize];
            slice.iter_mut().for_each(|token| *token = counts.rank(*token));
            slice.sort_unstable();
        });
        sets.par_sort_unstable_by_key(|set| (set.size, set.row));
        let mut parities = Vec::new();
        for set in &mut sets {
            let words = (set.size as usize).next_power_of_two().max(128) / 64;
            set.parity = parities.len();
            parities.resize(set.parity + words, 0);
            for &token in &tokens[set.start..][..set.size as usize] {
                parities[set.parity + ((token >> 6) as usize & (words - 1))] ^= 1 << (token & 63);
            }
        }
        Self {
            threshold,
            tokens,
            parities,
            sets,
        }
    }

    fn len(&self) -> u32 {
        self.sets.len() as u32
    }

    fn size(&self, set: u32) -> u32 {
        self.sets[set as usize].size
    }

    fn tokens(&self, set: u32) -> &[u64] {
        let Set { start, size, .. } = self.sets[set as usize];
        &self.tokens[start..start + size as usize]
    }

    fn parities(&self, set: u32) -> &[u64] {
        let end = self
            .sets
            .get(set as usize + 1)
            .map_or(self.parities.len(), |next| next.parity);
        &self.parities[self.sets[set as usize].parity..end]
    }

    /// The parities of a set in 128 classes.
    fn folded(&self, set: u32) -> u128 {
        let fold = |sum: u128, words: &[u64]| sum ^ (u128::from(words[1]) << 64 | u128::from(words[0]));
        self.parities(set).chunks_exact(2).fold(0, fold)
    }

    /// The first set that is large enough to be like `set`.
    fn first_like(&self, set: u32) -> u32 {
        let size = f64::from(self.size(set));
        self.sets
            .partition_point(|other| f64::from(other.size) / size < self.threshold) as u32
    }

    /// The places whose tokens a set must look up to find each like set that is no larger. Those before them hold
    /// tokens that no other set has.
    fn prefix(&self, set: u32) -> Range<u32> {
        let size = self.size(set);
        // A smaller set that is like this one shares so much that even as a part of this one it reaches the threshold.
        let mut shared = (f64::from(size) * self.threshold) as u32;
        while shared == 0 || f64::from(shared) / f64::from(size) < self.threshold {
            shared += 1;
        }
        while shared > 1 && f64::from(shared - 1) / f64::from(size) >= self.threshold {
            shared -= 1;
        }
        let end = size - shared + 1;
        let alone = self.tokens(set).partition_point(|token| token >> HASH_BITS == 0) as u32;
        alone.min(end)..end
    }

    /// The number of first places by which each like set that is no smaller finds this one.
    fn indexed(&self, set: u32) -> u32 {
        let size = self.size(set);
        size - self.needed(size, size) + 1
    }

    /// How many tokens sets of these sizes share at least where they reach the threshold.
    fn needed(&self, size: u32, other: u32) -> u32 {
        let sum = f64::from(size) + f64::from(other);
        let reaches = |shared: f64| shared / (sum - shared) >= self.threshold;
        let mut shared = (sum * self.threshold / (1.0 + self.threshold)).floor().max(1.0);
        while !reaches(shared) {
            shared += 1.0;
        }
        while shared > 1.0 && reaches(shared - 1.0) {
            shared -= 1.0;
        }
        shared as u32
    }

    /// Whether two sets reach the threshold, given that they share nothing before these places.
    fn are_alike(&self, (set, place): (u32, u32), (other, other_place): (u32, u32)) -> bool {
        let (size, other_size) = (self.size(set), self.size(other));
        let needed = self.needed(size, other_size);
        if (size - place).min(other_size - other_place) < needed {
            return false;
        }
        // A token of one set alone changes one parity.
        let (mut wide, mut narrow) = (self.parities(set), self.parities(other));
        if wide.len() < narrow.len() {
            (wide, narrow) = (narrow, wide);
        }
        let mut unshared = 0;
        for (class, word) in narrow.iter().enumerate() {
            let folded = wide[class..]
                .iter()
                .step_by(narrow.len())
                .fold(*word, |one, other| one ^ other);
            unshared += folded.count_ones();
        }
        if u64::from(unshared) + 2 * u64::from(needed) > u64::from(size) + u64::from(other_size) {
            return false;
        }
        let (one, two) = (self.tokens(set), self.tokens(other));
        share(&one[place as usize..], &two[other_place as usize..], needed as usize)
    }
}

/// A token in the prefix of a set, and its place there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    token: u64,
    set: u32,
    place: u32,
}

/// A set that is found by a token, with what tells most sets from it without a look at them.
#[derive(Clone, Copy)]
struct Posting {
    set: u32,
    size: u32,
    place: u32,
    /// The next posting of the run, or the run's end, that was in another cluster when the index was made.
    other: u32,
    parities: u128,
}

/// Which sets are found by which tokens, smaller ones first.
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
        let mut seen = vec![0; sets.sets.len()];
        loop {
            let end = sets.len().saturating_sub(next.fetch_add(CHUNK, Relaxed));
            if end == 0 {
                return;
            }
            (end.saturating_sub(CHUNK)..end).for_each(|set| index.link(set, sets, forest, &mut seen));
        }
    });
}

/// Which sets are of one cluster, as far as they have been joined.
struct Forest(Vec<AtomicU32>);

impl Forest {
    fn new(sets: u32) -> Self {
        Self((0..sets).map(AtomicU32::new).collect())
    }

    /// The set that stands for the cluster of `set` for now.
    fn root(&self, mut set: u32) -> u32 {
        loop {
            let parent = self.0[set as usize].load(Relaxed);
            let above = self.0[parent as usize].load(Relaxed);
            if parent == above {
                return parent;
            }
            // Parents only ever move towards the root, so a lost exchange costs a step, nothing else.
            let _ = self.0[set as usize].compare_exchange_weak(parent, above, Relaxed, Relaxed);
            set = above;
        }
    }

    fn join(&self, one: u32, other: u32) {
        loop {
            let (one, other) = (self.root(one), self.root(other));
            let (low, high) = (one.min(other), one.max(other));
            // `high` may have got a parent in the meantime: then both roots are looked up again.
            if low == high
                || self.0[high as usize]
                    .compare_exchange(high, low, Relaxed, Relaxed)
                    .is_ok()
            {
                return;
            }
        }
    }
}

/// Whether two sorted slices share at least `needed` entries.
fn share(one: &[u64], other: &[u64], needed: usize) -> bool {
    let (mut i, mut j, mut found) = (0, 0, 0);
    while found < needed {
        if found + (one.len() - i).min(other.len() - j) < needed {
            return false;
        }
        let (a, b) = (one[i], other[j]);
        found += usize::from(a == b);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    true
}

/// How many sets have a token, counted by a part of its hash: never too few.
struct Counts(Vec<AtomicU32>);

impl Counts {
    fn new(tokens: usize) -> Self {
        let length = tokens.next_power_of_two().clamp(1 << 10, COUNTS_MAX);
        Self((0..length).map(|_| AtomicU32::new(0)).collect())
    }

    fn entry(&self, token: u64) -> &AtomicU32 {
        &self.0[(token >> 20) as usize & (self.0.len() - 1)]
    }

    fn add(&self, token: u64) {
        self.entry(token).fetch_add(1, Relaxed);
    }

    /// The token with its frequency before it, in half octaves: 0 where one set has it, 1 where two have it.
    fn rank(&self, token: u64) -> u64 {
        let count = u64::from(self.entry(token).load(Relaxed).max(1));
        let class = (count * count).ilog2().saturating_sub(u32::from(count > 1));
        u64::from(class) << HASH_BITS | token & ((1 << HASH_BITS) - 1)
    }
}
