//! Randomness that is a pure function of its key: a stream of numbers, and a permutation of `0..n` that gives one place
//! at a time. Knows no rows and no prompts.

use std::array::from_fn;

/// Largest `n` whose permutation is a table: exactly fair, and two tables of 16-bit places fit a first-level cache.
const TABLE_MAX: u64 = 4_096;

/// Feistel rounds. χ² of pairs (π(3), π(4)) over keys lies 40 to 300 standard deviations too high after four
/// rounds at n from 64 to 1,000, 1 to 6 after six, and within 4 after eight (November 2026).
pub const ROUNDS: usize = 8;

/// Numbers that go through the rounds side by side.
const LANES: usize = 16;

/// SplitMix64's output function: a bijection of 64 bits in which every input bit reaches every output bit.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One key from several parts; their order counts.
pub(crate) fn key(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0, |state: u64, part| mix(state.wrapping_add(GOLDEN) ^ mix(*part)))
}

pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

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
            Self::feistel(n, key, ROUNDS)
        }
    }

    /// Feistel rounds at any n ≥ 1: at small n their fairness is hardest, so tests ask for them there; and tests ask
    /// for fewer than eight to see themselves fail.
    #[must_use]
    pub fn feistel(n: u64, key: u64, rounds: usize) -> Self {
        Self(Kind::Feistel(Feistel::new(n, key, rounds)))
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

    /// Replaces each place by π(place).
    pub fn at_each(&self, places: &mut [u64]) {
        match &self.0 {
            Kind::Table { at, .. } => look_up(at, places),
            Kind::Feistel(feistel) => feistel.each::<false>(places),
        }
    }

    /// Replaces each x by π⁻¹(x).
    pub fn place_of_each(&self, xs: &mut [u64]) {
        match &self.0 {
            Kind::Table { place_of, .. } => look_up(place_of, xs),
            Kind::Feistel(feistel) => feistel.each::<true>(xs),
        }
    }
}

fn look_up(table: &[u16], xs: &mut [u64]) {
    for x in xs {
        *x = u64::from(table[*x as usize]);
    }
}

/// A generalized Feistel network (Black and Rogaway 2002) on pairs (left, right) of `0..a` × `0..2^w`, both near √n,
/// with a the smallest number such that a·2^w holds n: a step outside `0..n` has chance 1/√n or so, where halves of
/// bits would leave it in every second step.
#[derive(Debug, Clone)]
struct Feistel {
    n: u64,
    a: u64,
    /// w, at most 32.
    width: u32,
    keys: [[RoundKey; 2]; ROUNDS / 2],
    /// How many of them are used.
    double_rounds: usize,
}

/// 32 bits each; the multiplier is odd.
#[derive(Debug, Clone, Copy)]
struct RoundKey {
    mask: u64,
    multiplier: u64,
}

impl Feistel {
    fn new(n: u64, key: u64, rounds: usize) -> Self {
        let width = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2);
        let mut stream = Stream::new(&[key, n]);
        let mut round_key = || {
            let word = stream.word();
            RoundKey {
                mask: word >> 32,
                multiplier: word & HALF | 1,
            }
        };
        Self {
            n,
            a: ((n - 1) >> width) + 1,
            width,
            keys: from_fn(|_| from_fn(|_| round_key())),
            double_rounds: rounds.min(ROUNDS) / 2,
        }
    }

    /// Cycle walking: a permutation of `0..a·2^w`, applied until it is back in `0..n`, permutes `0..n`.
    ///
    /// Everything is arithmetic on lanes of 64 bits that hold 32, with products as wide as the lane, so compilers turn
    /// it into whatever vectors the machine has: a number takes 2.6 ns with AVX-512, 3.4 with AVX2 and 5.3 without
    /// either (one core of an Intel Xeon, November 2026).
    fn each<const BACK: bool>(&self, xs: &mut [u64]) {
        pulp::Arch::new().dispatch(Walk::<BACK> { feistel: self, xs });
    }

    #[inline(always)]
    fn forward<const L: usize>(&self, xs: [u64; L]) -> [u64; L] {
        let (mut left, mut right) = self.halves(xs);
        for &[one, two] in &self.keys[..self.double_rounds] {
            left = from_fn(|lane| {
                let sum = left[lane] + self.below_a(right[lane], one);
                if sum >= self.a { sum - self.a } else { sum }
            });
            right = from_fn(|lane| right[lane] ^ self.bits(left[lane], two));
        }
        self.join(left, right)
    }

    #[inline(always)]
    fn backward<const L: usize>(&self, xs: [u64; L]) -> [u64; L] {
        let (mut left, mut right) = self.halves(xs);
        for &[one, two] in self.keys[..self.double_rounds].iter().rev() {
            right = from_fn(|lane| right[lane] ^ self.bits(left[lane], two));
            left = from_fn(|lane| {
                let part = self.below_a(right[lane], one);
                let difference = left[lane].wrapping_sub(part);
                if left[lane] < part {
                    difference.wrapping_add(self.a)
                } else {
                    difference
                }
            });
        }
        self.join(left, right)
    }

    #[inline(always)]
    fn halves<const L: usize>(&self, xs: [u64; L]) -> ([u64; L], [u64; L]) {
        let mask = (1 << self.width) - 1;
        (xs.map(|x| x >> self.width), xs.map(|x| x & mask))
    }

    #[inline(always)]
    fn join<const L: usize>(&self, left: [u64; L], right: [u64; L]) -> [u64; L] {
        from_fn(|lane| left[lane] << self.width | right[lane])
    }

    /// The round function of the left half: a number of `0..a` from the right one.
    #[inline(always)]
    fn below_a(&self, right: u64, key: RoundKey) -> u64 {
        (fold(right, key) * self.a) >> 32
    }

    /// The round function of the right half: w bits from the left one.
    #[inline(always)]
    fn bits(&self, left: u64, key: RoundKey) -> u64 {
        fold(left, key) >> (32 - self.width)
    }
}

const HALF: u64 = 0xffff_ffff;

/// 32 bits from 32 and a round's key, with one multiplication: the two halves of the product, of which one depends on
/// the low bits of the factors and the other on the high ones, folded into one another. The key is in the multiplier
/// too: with one multiplier for all rounds and keys, four rounds are a hundred times worse, and without the fold pairs
/// are too even after eight. A second multiplication changes nothing that the pair test sees.
#[inline(always)]
fn fold(half: u64, key: RoundKey) -> u64 {
    let product = ((half ^ key.mask) & HALF) * (key.multiplier & HALF);
    (product ^ (product >> 32)) & HALF
}

/// What runs with the machine's vector instructions.
struct Walk<'a, const BACK: bool> {
    feistel: &'a Feistel,
    xs: &'a mut [u64],
}

impl<const BACK: bool> Walk<'_, BACK> {
    #[inline(always)]
    fn step<const L: usize>(feistel: &Feistel, xs: [u64; L]) -> [u64; L] {
        if BACK {
            feistel.backward(xs)
        } else {
            feistel.forward(xs)
        }
    }
}

impl<const BACK: bool> pulp::NullaryFnOnce for Walk<'_, BACK> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { feistel, xs } = self;
        let (blocks, rest) = xs.as_chunks_mut::<LANES>();
        for block in blocks {
            *block = Self::step(feistel, *block);
        }
        for x in rest {
            *x = Self::step(feistel, [*x])[0];
        }
        for x in xs {
            while *x >= feistel.n {
                *x = Self::step(feistel, [*x])[0];
            }
        }
    }
}

/// A keyed bijection of `0..2^BITS` for an even number of bits up to 64, undone as fast as it is done: spreads small
/// codes over all bits, so that sorting by it is sorting at random.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scramble<const BITS: u32> {
    mask: u64,
    multipliers: [u64; 3],
    inverses: [u64; 3],
}

impl<const BITS: u32> Scramble<BITS> {
    const ALL: u64 = u64::MAX >> (64 - BITS);

    pub(crate) fn new(key: u64) -> Self {
        let mut stream = Stream::new(&[key]);
        let mask = stream.word() & Self::ALL;
        let multipliers = from_fn(|_| stream.word() | 1);
        // Newton's iteration doubles the right bits, of which an odd number has three at first.
        let inverse = |odd: u64| (0..5).fold(odd, |y, _| y.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(y))));
        Self {
            mask,
            multipliers,
            inverses: multipliers.map(inverse),
        }
    }

    #[inline]
    pub(crate) fn code(&self, x: u64) -> u64 {
        self.multipliers.iter().fold(x ^ self.mask, |x, multiplier| {
            Self::shift(x.wrapping_mul(*multiplier) & Self::ALL)
        })
    }

    #[inline]
    pub(crate) fn decode(&self, x: u64) -> u64 {
        self.inverses
            .iter()
            .rev()
            .fold(x, |x, inverse| Self::shift(x).wrapping_mul(*inverse) & Self::ALL)
            ^ self.mask
    }

    /// Its own inverse, since it moves half of the bits.
    #[inline]
    fn shift(x: u64) -> u64 {
        x ^ (x >> (BITS / 2))
    }
}
