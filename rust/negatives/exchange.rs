//! Inadmissible counterparts, mended without using any place more or less often: a bipartite matching, one place after
//! another. Knows places and which may meet.

use std::collections::VecDeque;

use crate::negatives::shifts::turn;
use crate::random::Stream;

/// Partners that are tried at random, and as many among the other bad entries, where a partner is likeliest if few
/// exist.
const TRIES: usize = 64;

/// Up to this many entries, augmenting paths find a way to mend an entry wherever there is one.
const SMALL: usize = 512;

pub(crate) struct Exchange<'a, A> {
    /// Counterparts as places, `[places, K]`.
    pub(crate) targets: Vec<usize>,
    negatives: usize,
    admits: &'a A,
}

impl<'a, A: Fn(usize, usize) -> bool> Exchange<'a, A> {
    pub(crate) fn new(targets: Vec<usize>, negatives: usize, admits: &'a A) -> Self {
        Self {
            targets,
            negatives,
            admits,
        }
    }

    /// Mends the entries `bad`; returns the places of which one could not be mended, in ascending order.
    pub(crate) fn mend(&mut self, bad: &[usize], stream: &mut Stream) -> Vec<usize> {
        let (mut misses, mut hits, mut failed) = (0, 0, Vec::new());
        let mut waiting: VecDeque<usize> = bad.iter().copied().collect();
        while let Some(entry) = waiting.pop_front() {
            if self.is_good(entry) {
                continue;
            }
            // Where nearly no entry finds a partner, looking for more of them takes time and mends nothing.
            let hopeless = misses > TRIES + 2 * hits;
            if !hopeless && self.swap(entry, bad, stream) {
                hits += 1;
            } else if !hopeless && let Some(end) = self.augment(entry, stream) {
                hits += 1;
                waiting.push_back(end);
            } else {
                misses += 1;
                failed.push(entry / self.negatives);
            }
        }
        failed.sort_unstable();
        failed.dedup();
        failed.retain(|&place| !(0..self.negatives).all(|k| self.is_good(place * self.negatives + k)));
        failed
    }

    /// Whether the entry is admissible, and the only one of its place with this counterpart.
    fn is_good(&self, entry: usize) -> bool {
        let (place, target) = (entry / self.negatives, self.targets[entry]);
        (self.admits)(place, target) && self.of(place).iter().filter(|&&other| other == target).count() == 1
    }

    fn of(&self, place: usize) -> &[usize] {
        &self.targets[place * self.negatives..][..self.negatives]
    }

    /// Whether the place may get this counterpart and does not have it yet.
    fn takes(&self, place: usize, target: usize) -> bool {
        (self.admits)(place, target) && !self.of(place).contains(&target)
    }

    /// Swaps targets with one other entry, so that both are good.
    fn swap(&mut self, entry: usize, bad: &[usize], stream: &mut Stream) -> bool {
        let (place, length) = (entry / self.negatives, self.targets.len() as u64);
        let start = stream.below(bad.len() as u64);
        for turns in 0..2 * TRIES {
            let partner = if turns % 2 == 0 {
                stream.below(length) as usize
            } else {
                bad[turn(start, (turns as u64 / 2) % bad.len() as u64, bad.len() as u64) as usize]
            };
            let other = partner / self.negatives;
            if self.takes(place, self.targets[partner]) && self.takes(other, self.targets[entry]) {
                self.targets.swap(entry, partner);
                return true;
            }
        }
        false
    }

    /// The shortest chain in which each place takes the counterpart of the next, and the last one the bad entry's: then
    /// all are good. Or a chain that ends at another bad entry, which takes it: then there is one bad entry less.
    ///
    /// Returns the entry that took the bad entry's counterpart.
    fn augment(&mut self, entry: usize, stream: &mut Stream) -> Option<usize> {
        let length = self.targets.len();
        if length > SMALL {
            return None;
        }
        let (first, free, start) = (entry / self.negatives, self.targets[entry], stream.below(length as u64));
        // Of each place reached: the entry that it loses.
        let mut loses: Vec<Option<usize>> = vec![None; length / self.negatives];
        let mut takes_from = loses.clone();
        loses[first] = Some(entry);
        let mut waiting = VecDeque::from([first]);
        while let Some(place) = waiting.pop_front() {
            for count in 0..length as u64 {
                let other_entry = turn(start, count, length as u64) as usize;
                let other = other_entry / self.negatives;
                if loses[other].is_some() || !self.takes(place, self.targets[other_entry]) {
                    continue;
                }
                loses[other] = Some(other_entry);
                takes_from[other] = Some(place);
                if !self.is_good(other_entry) || self.takes(other, free) {
                    self.follow(other, free, &loses, &takes_from);
                    return Some(other_entry);
                }
                waiting.push_back(other);
            }
        }
        None
    }

    /// Moves the counterparts along the chain that ends at `last`.
    fn follow(&mut self, last: usize, free: usize, loses: &[Option<usize>], takes_from: &[Option<usize>]) {
        let (mut place, mut moved) = (last, free);
        while let Some(entry) = loses[place] {
            std::mem::swap(&mut self.targets[entry], &mut moved);
            match takes_from[place] {
                Some(next) => place = next,
                None => break,
            }
        }
    }
}
