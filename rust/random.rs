//! Randomness that is a pure function of its key: a stream of numbers, and a permutation of `0..n` that can be
//! asked for one place at a time. Knows no rows and no prompts.

use std::array::from_fn;

/// Largest `n` whose permutation is a table: exactly fair, and two tables of 16-bit places fit a first-level cache.
const TABLE_MAX: u64 = 4_096;

/// Two Feistel rounds each. χ² of (π(3), π(4)) over keys lies 6 to 10 standard deviations too high after four rounds
/// at n = 65 and 257, and within 1 after eight (November 2026).
const DOUBLE_ROUNDS: usize = 4;

/// Numbers that go through the rounds side by side.
const LANES: usize = 8;

/// SplitMix64's output function: a bijection of 64 bits in which every input bit reaches every output bit.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One key from several parts, in which the order of the parts counts.
pub(crate) fn key(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0, |state: u64, part| mix(state.wrapping_add(GOLDEN) ^ mix(*part)))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The high 64 bits of a product: maps a uniform `x` to `0..n`.
fn scale(x: u64, n: u64) -> u64 {
    ((u128::from(x) * u128::from(n)) >> 64) as u64
}

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Stream(u64);

impl Stream {
    pub(crate) fn new(parts: &[u64]) -> Self {
        Self(key(parts))
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number of `0..n`, without bias (Lemire 2019); `n` must not be 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.word()) * u128::from(n);
            // The remainder is slow and below n, so most draws need not compute it.
            if product as u64 >= n || product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }
}

/// A keyed permutation π of `0..n`: an exact shuffle up to 4,096 places, eight Feistel rounds above.
///
/// `at` and `place_of` are inverse to each other and take the same time for every n above 4,096: nothing of size n
/// is kept.
#[derive(Debug, Clone)]
pub struct Permutation(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Table { at: Vec<u16>, place_of: Vec<u16> },
    Feistel(Feistel),
}

impl Permutation {
    /// The permutation of `0..n` that belongs to `key`; n is at most 2^63.
    #[must_use]
    pub fn new(n: u64, key: u64) -> Self {
        if n <= TABLE_MAX {
            Self::table(n, key)
        } else {
            Self::feistel(n, key)
        }
    }

    /// Feistel rounds at any n ≥ 1, so that their fairness can be tested where it is hardest, at small n.
    #[must_use]
    pub fn feistel(n: u64, key: u64) -> Self {
        Self(Kind::Feistel(Feistel::new(n, key)))
    }

    fn table(n: u64, key: u64) -> Self {
        let mut stream = Stream::new(&[key, n]);
        let mut at: Vec<u16> = (0..n as u16).collect();
        for last in (1..n).rev() {
            at.swap(last as usize, stream.below(last + 1) as usize);
        }
        let mut place_of = vec![0; at.len()];
        for (place, &x) in at.iter().enumerate() {
            place_of[usize::from(x)] = place as u16;
        }
        Self(Kind::Table { at, place_of })
    }

    /// π(place).
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        let mut one = [place];
        self.at_each(&mut one);
        one[0]
    }

    /// π⁻¹(x).
    #[must_use]
    pub fn place_of(&self, x: u64) -> u64 {
        let mut one = [x];
        self.place_of_each(&mut one);
        one[0]
    }

    /// Puts π(place) in each place's stead.
    pub fn at_each(&self, places: &mut [u64]) {
        match &self.0 {
            Kind::Table { at, .. } => look_up(at, places),
            Kind::Feistel(feistel) => feistel.each(places, Feistel::forward, Feistel::forward),
        }
    }

    /// Puts π⁻¹(x) in each x's stead.
    pub fn place_of_each(&self, xs: &mut [u64]) {
        match &self.0 {
            Kind::Table { place_of, .. } => look_up(place_of, xs),
            Kind::Feistel(feistel) => feistel.each(xs, Feistel::backward, Feistel::backward),
        }
    }
}

fn look_up(table: &[u16], xs: &mut [u64]) {
    for x in xs {
        *x = u64::from(table[*x as usize]);
    }
}

/// A generalized Feistel network (Black and Rogaway 2002) on pairs (left, right) of `0..a` × `0..b`, where a·b is
/// the smallest such product near the square root that holds n: a step outside `0..n` has chance 1/√n, where
/// halves of bits would leave it in every second step.
#[derive(Debug, Clone)]
struct Feistel {
    n: u64,
    a: u64,
    b: u64,
    /// ⌊2^64 / b⌋: a multiplication instead of a division.
    reciprocal: u64,
    keys: [(u64, u64); DOUBLE_ROUNDS],
}

impl Feistel {
    fn new(n: u64, key: u64) -> Self {
        let root = n.isqrt();
        let a = if root * root < n { root + 1 } else { root };
        // Not 1: its reciprocal would need 65 bits.
        let b = n.div_ceil(a).max(2);
        let mut stream = Stream::new(&[key, n]);
        let keys = from_fn(|_| (stream.word(), stream.word()));
        Self {
            n,
            a,
            b,
            reciprocal: ((1_u128 << 64) / u128::from(b)) as u64,
            keys,
        }
    }

    /// Cycle walking: a permutation of `0..a·b`, applied until it comes back into `0..n`, permutes `0..n`.
    ///
    /// The rounds of one number wait for each other, so several go side by side: 11 ns a number instead of 20 with
    /// eight lanes (one core of an AMD EPYC, n = 10^7, November 2026).
    #[inline]
    fn each(
        &self,
        xs: &mut [u64],
        step: impl Fn(&Self, [u64; LANES]) -> [u64; LANES],
        step_one: impl Fn(&Self, [u64; 1]) -> [u64; 1],
    ) {
        let (blocks, rest) = xs.as_chunks_mut::<LANES>();
        blocks.iter_mut().for_each(|block| *block = step(self, *block));
        rest.iter_mut().for_each(|x| *x = step_one(self, [*x])[0]);
        for x in xs {
            while *x >= self.n {
                *x = step_one(self, [*x])[0];
            }
        }
    }

    #[inline]
    fn forward<const L: usize>(&self, xs: [u64; L]) -> [u64; L] {
        let (mut left, mut right) = self.halves(xs);
        for (left_key, right_key) in self.keys {
            left = from_fn(|lane| add(left[lane], draw(right[lane], left_key, self.a), self.a));
            right = from_fn(|lane| add(right[lane], draw(left[lane], right_key, self.b), self.b));
        }
        from_fn(|lane| left[lane] * self.b + right[lane])
    }

    #[inline]
    fn backward<const L: usize>(&self, xs: [u64; L]) -> [u64; L] {
        let (mut left, mut right) = self.halves(xs);
        for (left_key, right_key) in self.keys.into_iter().rev() {
            right = from_fn(|lane| subtract(right[lane], draw(left[lane], right_key, self.b), self.b));
            left = from_fn(|lane| subtract(left[lane], draw(right[lane], left_key, self.a), self.a));
        }
        from_fn(|lane| left[lane] * self.b + right[lane])
    }

    /// (x / b, x % b) of each; the estimate of the quotient is at most one too small.
    #[inline]
    fn halves<const L: usize>(&self, xs: [u64; L]) -> ([u64; L], [u64; L]) {
        let estimate = xs.map(|x| scale(x, self.reciprocal));
        let left: [u64; L] = from_fn(|lane| estimate[lane] + u64::from(xs[lane] - estimate[lane] * self.b >= self.b));
        (left, from_fn(|lane| xs[lane] - left[lane] * self.b))
    }
}

/// The round function: a number of `0..n` from the other half and the round's key. Without the fold and the second
/// multiplication it is nearly linear, and pairs come out too evenly even after eight rounds (χ² 14 standard deviations
/// too low at n = 257).
#[inline]
fn draw(half: u64, key: u64, n: u64) -> u64 {
    let x = (half ^ key).wrapping_mul(0xff51_afd7_ed55_8ccd);
    scale((x ^ (x >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53), n)
}

/// (x + y) mod n of two numbers below n, without a branch.
#[inline]
fn add(x: u64, y: u64, n: u64) -> u64 {
    (x + y).min((x + y).wrapping_sub(n))
}

/// (x - y) mod n of two numbers below n, without a branch.
#[inline]
fn subtract(x: u64, y: u64, n: u64) -> u64 {
    x.wrapping_sub(y).min(x.wrapping_sub(y).wrapping_add(n))
}
